"""`effp-fx bench compile`: how long it takes from a model to a pruned one, beside Torch-Pruning."""

from __future__ import annotations

from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Json, print_json

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="As for all commands.")]
Sizes = Annotated[
    list[int] | None,
    typer.Option("--size", metavar="N", help="A residual network of so many convolutions; repeatable. 50, 200."),
]


def compile_time(
    models: Models = None,
    sizes: Sizes = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of each tool on each model, in turns.")] = 3,
    json: Json = False,
) -> None:
    """Capture, analyse, try, plan and lower to half the FLOPs, against Torch-Pruning, over the size of the model."""
    # Torch-Pruning takes a while to import.
    from effp_fx.bench.compile_time import measure, subjects

    wanted = subjects(models or [], sizes or ([] if models else [50, 200]))
    with report.progress() as step:
        found = measure(wanted, repeats=repeats, progress=step)
    if json:
        print_json(report.compile_json(found))
    else:
        report.show(report.compile_table(found))
