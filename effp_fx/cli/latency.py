"""`effp-fx latency`: percentiles of a bundle or an ONNX file, beside the dense one in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Json, print_json

Measured = Annotated[Path, typer.Argument(metavar="DIR_OR_ONNX", help="A folder of effp-fx export --target, or ONNX.")]
Against = Annotated[Path | None, typer.Option("--against", metavar="DENSE", help="The dense one, timed in turns.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Of ONNX Runtime; 0: as many as there are cores.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="As many times as each is run.")]
Warmup = Annotated[int, typer.Option("--warmup", min=0, help="Rounds before that which do not count.")]


def latency(
    measured: Measured,
    against: Against = None,
    threads: Threads = 0,
    rounds: Rounds = 100,
    warmup: Warmup = 5,
    json: Json = False,
) -> None:
    """Time a network: median, 90th and 99th percentile, runs a second. On a board by its TensorRT engine."""
    # onnx and torch take a while to import, and most commands do without them.
    from effp_fx.evaluate.latency import interleaved
    from effp_fx.export.handoff.latency import call_of, runtime_of

    paths = [measured] if against is None else [measured, against]
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(f"{path} is not there")
    with report.progress() as step:
        runtime = runtime_of(paths)
        step(f"run in {runtime}")
        calls = {str(path): call_of(path, runtime, threads) for path in paths}
        found = interleaved(calls, rounds=rounds, warmup=warmup)
    title = runtime if not threads else f"{runtime}, {threads} threads"
    if json:
        print_json(report.latency_json(title, found))
        return
    report.show(report.latency_table(title, found))
