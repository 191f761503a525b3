"""The report of a pruned model: before and after per layer, totals, the verification, where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effp_fx.plan import Plan, package_version
from effp_fx.report.export_report import export_json
from effp_fx.report.layers import LayerRow, layer_rows
from effp_fx.report.subjects import Pruned
from effp_fx.report.terminal import Bar, amount, percent, table, timings, whole
from effp_fx.report.trace_report import layer_json
from effp_fx.verify import Check, Verification

if TYPE_CHECKING:  # onnx takes a while to import
    from effp_fx.export import ExportReport


def prune_table(result: Pruned) -> RenderableType:
    """Layers before and after as bars, the totals, and the proof that nothing else changed."""
    parts: list[RenderableType] = [
        _layers(pruned_rows(result)),
        Text(""),
        _totals(result),
        Text(""),
        verification_table(result.verification),
    ]
    if result.seconds:
        parts += [Text(""), Text(f"time: {timings(result.seconds)}")]
    if result.trace.notes:
        parts += [Text(""), Text("\n".join(f"note: {note}" for note in result.trace.notes))]
    return Group(*parts)


def verification_table(verification: Verification) -> RenderableType:
    """Masked against compact, one row for each mode and dtype."""
    made = table("mode", "dtype", ">largest relative error", ">allowed", "", "worst output", title="verification")
    for check in verification.checks:
        made.add_row(
            check.mode,
            check.dtype,
            f"{check.max_relative_error:.2e}",
            f"{check.tolerance:.0e}",
            "equal" if check.equal else "DIFFERS",
            _worst(check) + (f"; {check.note}" if check.note else ""),
        )
    verdict = "the compact model computes what the masked one does" if verification.equal else "NOT verified"
    return Group(made, Text(f"{verdict} (float64: {verification.max_relative_error:.2e})"))


def plan_table(plan: Plan) -> RenderableType:
    """A stored plan: its totals where it notes them, and what is left of each group."""
    made = table("group", ">channels", "", ">kept", "")
    for name, group in plan.groups.items():
        share = len(group.kept) / group.channels
        made.add_row(name, str(group.channels), f"-> {len(group.kept)}", percent(share), Bar(1.0, share))
    noted = [
        f"{name}: {amount(float(plan.summary[f'{key}_before']))} -> {amount(float(plan.summary[f'{key}_after']))}"
        for key, name in (("flops", "FLOPs"), ("params", "parameters"))
        if {f"{key}_before", f"{key}_after"} <= set(plan.summary)
    ]
    return Group(made, Text(""), Text("\n".join(noted)))


def file_list(files: Mapping[str, object]) -> RenderableType:
    """What was written, and where."""
    made = table("written", "file")
    for what, path in files.items():
        made.add_row(what, str(path))
    return made


def prune_json(
    result: Pruned, files: Mapping[str, object] | None = None, export: ExportReport | None = None
) -> dict[str, Any]:
    """All that the tables show and more, as JSON."""
    rows = pruned_rows(result)
    found: dict[str, Any] = {
        "effp_fx": package_version(),
        "model": result.trace.model_name,
        "flops_before": whole(result.flops_before),
        "flops_after": whole(result.flops_after),
        "params_before": whole(result.params_before),
        "params_after": whole(result.params_after),
        "one_channel_flops": whole(result.one_channel_flops),
        "layers": [_row_json(row, result.flops_before) for row in rows],
        "verification": verification_json(result.verification),
        "notes": list(result.trace.notes),
        "seconds": dict(result.seconds),
    }
    if export is not None:
        found["onnx"] = export_json(export)
    if files is not None:
        found["files"] = {what: str(path) for what, path in files.items()}
    return found


def verification_json(verification: Verification) -> dict[str, Any]:
    """Every check with every output."""
    return {
        "equal": verification.equal,
        "max_relative_error": verification.max_relative_error,
        "checks": [
            {
                "mode": check.mode,
                "dtype": check.dtype,
                "max_relative_error": check.max_relative_error,
                "tolerance": check.tolerance,
                "note": check.note,
                "outputs": [
                    {
                        "name": output.name,
                        "shape": list(output.shape),
                        "max_absolute": output.max_absolute,
                        "max_relative": output.max_relative,
                    }
                    for output in check.outputs
                ],
            }
            for check in verification.checks
        ],
    }


def pruned_rows(result: Pruned) -> tuple[LayerRow, ...]:
    """The layers before and after."""
    return layer_rows(result.trace.analysis, result.keep)


def _layers(rows: tuple[LayerRow, ...]) -> Table:
    made = table("layer", "type", ">channels", "", ">FLOPs", "", ">kept", "of the costliest layer")
    most = max((row.flops for row in rows), default=0.0)
    for row in rows:
        if not row.is_contraction:
            continue
        made.add_row(
            row.layer,
            row.kind,
            str(row.channels) if row.channels else "-",
            f"-> {row.channels_after}" if row.channels else "",
            amount(row.flops),
            f"-> {amount(row.flops_after)}",
            percent(row.flops_after / row.flops),
            Bar(row.flops / most, row.flops_after / most),
        )
    return made


def _totals(result: Pruned) -> Table:
    made = table("total", ">before", ">after", ">kept", "")
    for name, before, after in (
        ("FLOPs", result.flops_before, result.flops_after),
        ("parameters", result.params_before, result.params_after),
    ):
        share = after / before if before else 1.0
        made.add_row(name, amount(before), amount(after), percent(share), Bar(1.0, share))
    return made


def _worst(check: Check) -> str:
    if not check.outputs:
        return ""
    worst = max(check.outputs, key=lambda output: output.max_relative)
    return f"{worst.name} {'x'.join(str(size) for size in worst.shape)}"


def _row_json(row: LayerRow, total: float) -> dict[str, Any]:
    after = {
        "channels_after": row.channels_after,
        "flops_after": whole(row.flops_after),
        "params_after": row.params_after,
    }
    return layer_json(row, total) | after
