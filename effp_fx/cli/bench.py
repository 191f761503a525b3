"""`effp-fx bench`: the latency of a model, and of its compact one in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report, store
from effp_fx.cli.arguments import Input, Json, Randomise, Seed, open_model, print_json
from effp_fx.evaluate.latency import Latency, interleaved, onnx_call, torch_call

Measured = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The dense model, for PyTorch.")]
Against = Annotated[
    Path | None, typer.Option("--against", metavar="SMALL.safetensors", help="The compact model beside it.")
]
Onnx = Annotated[
    list[Path] | None,
    typer.Option("--onnx", metavar="FILE", help="ONNX files for ONNX Runtime, the dense one first; repeatable."),
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="As many times as each is run.")]


def bench(
    model: Measured = None,
    against: Against = None,
    onnx: Onnx = None,
    rounds: Rounds = 20,
    shape: Input = None,
    randomise: Randomise = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time a model beside its compact one: in turns, medians; PyTorch eager, and ONNX Runtime for ONNX files."""
    if model is None and not onnx:
        raise typer.BadParameter("name a MODEL, or ONNX files with --onnx")
    if model is None and against is not None:
        raise typer.BadParameter("the compact model needs its dense MODEL", param_hint="--against")
    found: dict[str, tuple[Latency, ...]] = {}
    with report.progress() as step:
        if model is not None:
            step(f"build {model}")
            opened = open_model(model, shape, randomise=randomise, seed=seed)
            calls = {model: torch_call(opened.model, opened.inputs())}
            if against is not None:
                small = store.load(against, opened.model)
                calls[str(against)] = torch_call(small, opened.inputs())
            step("run in PyTorch")
            found["PyTorch"] = interleaved(calls, rounds=rounds)
        if onnx:
            step("run in ONNX Runtime")
            found["ONNX Runtime"] = interleaved({str(path): onnx_call(path) for path in onnx}, rounds=rounds)
    if json:
        print_json([report.bench_json(runtime, latencies) for runtime, latencies in found.items()])
        return
    for runtime, latencies in found.items():
        report.show(report.bench_table(runtime, latencies))
