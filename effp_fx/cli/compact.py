"""`effp-fx compact`: cuts a model by a plan that was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import binding, report, store, weights_file
from effp_fx.cli.arguments import Json, Model, open_model, print_json
from effp_fx.errors import FileFormatError
from effp_fx.plan import Plan

PlanFile = Annotated[
    Path, typer.Option("--plan", metavar="FILE", help="plan.json, or a small.safetensors, of which the plan is taken.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The compact model, a .safetensors.")]


def compact(model: Model, plan: PlanFile, output: Output = Path("small.safetensors"), json: Json = False) -> None:
    """Cut MODEL by a stored plan; the weights that are left are MODEL's own."""
    found = read_plan(plan)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model)
        step("cut it by the plan")
        small = binding.apply(opened.model, found, inplace=True)
        step("write the file")
        path = store.save(small, output, built_from=opened.built_from)
    if json:
        print_json({"summary": dict(found.summary), "files": {"model": str(path)}})
        return
    report.show(report.plan_table(found))
    typer.echo()
    report.show(report.file_list({"model": path}))


def read_plan(path: Path) -> Plan:
    """The plan in a plan.json or a safetensors file of ours. Raises FileFormatError."""
    if path.suffix == ".safetensors":
        return Plan.from_json(weights_file.read(path)[1].get("plan", ""))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError("the plan cannot be read", where=str(path), seen=str(error)) from error
    try:
        return Plan.from_json(text)
    except FileFormatError as error:
        error.where = f"{path}, {error.where}" if error.where else str(path)
        raise
