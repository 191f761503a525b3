"""`effp-fx trace`: what a model's layers cost, which channels belong together, what is frozen and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import api, atomic_file, group_file, report
from effp_fx.cli.arguments import Groups, Ignore, Input, Json, Model, Randomise, Seed, open_model, print_json

Channels = Annotated[bool, typer.Option("--channels", help="Also each channel group with everything it goes through.")]
Graph = Annotated[
    Path | None, typer.Option("--graph", metavar="FILE", help="Draw which group feeds which: .svg, .html or .dot.")
]
Emit = Annotated[
    Path | None,
    typer.Option("--emit", metavar="FILE", help="Write the groups as YAML to edit and to give to --groups."),
]


def trace(
    model: Model,
    channels: Channels = False,
    graph: Graph = None,
    emit: Emit = None,
    groups: Groups = None,
    ignore: Ignore = None,
    shape: Input = None,
    randomise: Randomise = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Print a model's layers: channels, group, gamma, FLOPs, share, what is frozen and why."""
    if graph is not None:
        report.check_suffix(graph)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, shape, randomise=randomise, seed=seed)
        found = api.trace(opened.model, opened.example, ignore=ignore or (), groups=groups, progress=step)
    files: dict[str, object] = {}
    if graph is not None:
        files["group graph"] = report.write_graph(found, graph)
    if emit is not None:
        files["groups"] = atomic_file.write(emit, group_file.emit(found.analysis).encode())
    if json:
        print_json({**report.trace_json(found), "files": {what: str(path) for what, path in files.items()}})
        return
    report.show(report.trace_table(found))
    if channels:
        typer.echo()
        report.show(report.channel_table(found))
    if files:
        typer.echo()
        report.show(report.file_list(files))
