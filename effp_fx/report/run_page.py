"""The report of a training run as one HTML page that needs nothing else, and its pictures."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from effp_fx.report.line_chart import line_chart
from effp_fx.report.run_report import RunReport
from effp_fx.report.run_table import speed, verdict
from effp_fx.report.terminal import amount, percent

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 14px sans-serif; margin: 24px auto; max-width: 1320px; padding: 0 16px }}
  table {{ border-collapse: collapse; margin: 12px 0 }}
  td, th {{ padding: 4px 14px 4px 0; border-bottom: 1px solid #ddd; text-align: right }}
  td:first-child, th:first-child {{ text-align: left }}
  .pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px }}
  code {{ word-break: break-all }}
</style>
<h1>{title}</h1>
{tables}
<p>{remarks}</p>
<div class="pictures">
{pictures}
</div>
<h2>Files</h2>
{files}
<h2>Epochs</h2>
{epochs}
</html>
"""


def run_page(found: RunReport) -> str:
    """The page as text."""
    return _PAGE.format(
        title=html.escape(f"{found.model}: {percent(_part(found.flops_after, found.flops))} of the FLOPs"),
        tables=_costs(found) + _scores(found),
        remarks="<br>".join(html.escape(line) for line in _remarks(found)),
        pictures="\n".join(f"<div>{picture}</div>" for picture in run_pictures(found).values()),
        files=_table(("what", "file"), found.files.items()),
        epochs=_epochs(found),
    )


def run_pictures(found: RunReport) -> dict[str, str]:
    """File name -> SVG: costs towards their targets, channels kept, losses, mAP."""
    updates = found.updates
    pictures = {}
    if updates:
        times = [float(update.step) for update in updates] + [float(found.steps)]  # the last mask stays to the end
        costs = {
            "FLOPs": _held([update.flops for update in updates], times, 1.0),
            "parameters": _held([update.params for update in updates], times, 1.0),
        }
        levels = _levels(found)
        pictures["costs.svg"] = line_chart("Part of the dense cost", costs, across="step", levels=levels, steps=True)
        kept = {name: _held([float(update.kept[name]) for update in updates], times) for name in updates[0].kept}
        pictures["kept.svg"] = line_chart("Channels kept of each group", kept, across="step", steps=True)
    losses = {name: [(float(row.step), row.losses[name]) for row in found.rows] for name in found.rows[0].losses}
    if updates:
        losses["pruning loss, before alpha"] = [(float(u.step), u.pruning_loss) for u in updates]
    pictures["losses.svg"] = line_chart("Terms of the loss", losses, across="step")
    judged = [row for row in found.rows if row.map is not None and row.map50 is not None]
    scores = {
        "mAP .5 to .95": [(float(row.step), row.map or 0.0) for row in judged],
        "mAP .5": [(float(row.step), row.map50 or 0.0) for row in judged],
    }
    pictures["map.svg"] = line_chart("mAP of the masked network", scores, across="step")
    return pictures


def _held(values: Sequence[float], times: Sequence[float], first: float | None = None) -> list[tuple[float, float]]:
    """Points of values each of which holds until the next; `first` is what was before all of them."""
    points = list(zip(times, [*values, values[-1]], strict=True))
    return points if first is None else [(0.0, first), *points]


def _levels(found: RunReport) -> dict[str, float]:
    """The targets as parts of the dense cost; those that are the same share a line."""
    dense, titles = {"flops": found.flops, "params": found.params}, {"flops": "FLOPs", "params": "parameters"}
    parts = {name: value if value <= 1 else value / dense[name] for name, value in found.targets.items()}
    names = {part: " and ".join(titles[name] for name in parts if parts[name] == part) for part in parts.values()}
    return {f"target of {name}": part for part, name in names.items()}


def _part(after: float, before: float) -> float:
    return after / before if before else 1.0


def _costs(found: RunReport) -> str:
    costs = {"FLOPs": (found.flops, found.flops_after), "parameters": (found.params, found.params_after)}
    rows = [(name, amount(all_), amount(left), percent(_part(left, all_))) for name, (all_, left) in costs.items()]
    return _table(("", "dense", "compact", "kept"), rows)


def _scores(found: RunReport) -> str:
    rows = [
        (name, f"{scores.map:.6f}", f"{scores.map50:.6f}", f"{scores.voc:.6f}") for name, scores in found.scores.items()
    ]
    return _table((f"on {found.judged_images} validation images", "mAP .5 to .95", "mAP .5", "VOC mAP"), rows)


def _remarks(found: RunReport) -> list[str]:
    lines = [f"{found.images} images, {found.steps} steps, {found.seconds / 60:.1f} minutes of training"]
    if found.map_difference is not None:
        lines.append(f"masked and compact network: {verdict(found)}, judged in {found.judged_in}")
    if found.onnx_error is not None:
        lines.append(f"ONNX Runtime against PyTorch: largest relative error {found.onnx_error:.1e}")
    if found.speedup is not None:
        lines.append(speed(found))
    return lines


def _epochs(found: RunReport) -> str:
    rows = [
        (
            str(row.epoch),
            f"{row.loss:.4f}",
            percent(row.flops),
            percent(row.params),
            "" if row.map is None else f"{row.map:.4f}",
            f"{row.seconds:.0f} s",
        )
        for row in found.rows
    ]
    return _table(("epoch", "loss", "FLOPs", "parameters", "mAP", "time"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
