"""`effp-fx bench latency`: dense and compact networks in turns; how much of a cut of FLOPs shows as time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from effp_fx import report, store
from effp_fx.cli.arguments import Input, Json, Opened, Randomise, Seed, open_model, print_json
from effp_fx.cli.outputs import Step
from effp_fx.evaluate.latency import Latency, interleaved, onnx_call, torch_call

Measured = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL|FOLDER]...", help="The dense model, for PyTorch; or folders with ONNX files."),
]
Against = Annotated[
    Path | None, typer.Option("--against", metavar="SMALL.safetensors", help="The compact model beside it.")
]
Onnx = Annotated[
    list[Path] | None,
    typer.Option("--onnx", metavar="FILE", help="ONNX files for ONNX Runtime, the dense one first; repeatable."),
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="As many times as each is run.")]
Target = Annotated[
    float | None,
    typer.Option("--target-flops", metavar="KEPT", help="Prune MODEL here, and compare time with FLOPs."),
]
RoundTo = Annotated[
    list[int] | None, typer.Option("--round-to", min=1, help="With --target-flops, a network each; repeatable.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Of ONNX Runtime; 0: as many as there are cores.")]


def latency(
    measured: Measured = None,
    against: Against = None,
    onnx: Onnx = None,
    target_flops: Target = None,
    round_to: RoundTo = None,
    compiled: Annotated[bool, typer.Option("--compile", help="With --target-flops: torch.compile too.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="With --target-flops: each layer's time.")] = False,
    threads: Threads = 0,
    rounds: Rounds = 20,
    shape: Input = None,
    randomise: Randomise = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time networks in turns, medians: a MODEL beside its compact one in PyTorch, ONNX files in ONNX Runtime.

    With --target-flops MODEL is pruned here, once for each --round-to, exported up to its raw heads, and the part of
    the time that is kept is set against the part of the FLOPs; on a GPU too where there is one.
    """
    folders = [Path(name) for name in measured or [] if Path(name).is_dir()]
    names = [name for name in measured or [] if not Path(name).is_dir()]
    files = [*_in_folders(folders), *(onnx or [])]
    model = names[0] if names else None
    if len(names) > 1:
        raise typer.BadParameter(f"one MODEL at a time, not {', '.join(names)}")
    if model is None and not files:
        raise typer.BadParameter("name a MODEL, a folder with ONNX files, or ONNX files with --onnx")
    if model is None and (against is not None or target_flops is not None):
        option = "--against" if against is not None else "--target-flops"
        raise typer.BadParameter("the compact model needs its dense MODEL", param_hint=option)
    found: dict[str, tuple[Latency, ...]] = {}
    compared: list[report.RatioReport] = []
    with report.progress() as step:
        if model is not None:
            step(f"build {model}")
            opened = open_model(model, shape, randomise=randomise, seed=seed)
            if target_flops is not None:
                options: dict[str, Any] = {"threads": threads, "rounds": rounds, "compiled": compiled, "layers": layers}
                compared = _ratios(opened, target_flops, round_to, options, step)
            else:
                step("run in PyTorch")
                found["PyTorch"] = _in_pytorch(opened, against, rounds)
        if files:
            step("run in ONNX Runtime")
            calls = {str(path): onnx_call(path, threads=threads) for path in files}
            found["ONNX Runtime"] = interleaved(calls, rounds=rounds)
    if json:
        parts = [report.bench_json(runtime, latencies) for runtime, latencies in found.items()]
        print_json([*parts, *map(report.ratio_json, compared)])
        return
    for runtime, latencies in found.items():
        report.show(report.bench_table(runtime, latencies))
    for one in compared:
        report.show(report.ratio_table(one))


def _in_folders(folders: list[Path]) -> list[Path]:
    """The ONNX files of each folder, those of the dense network first."""
    found: list[Path] = []
    for folder in folders:
        files = sorted(folder.glob("*.onnx"), key=lambda path: (path.stem not in ("dense", "masked"), path.name))
        if not files:
            raise typer.BadParameter(f"{folder} holds no ONNX file")
        found += files
    return found


def _in_pytorch(opened: Opened, against: Path | None, rounds: int) -> tuple[Latency, ...]:
    calls = {opened.name: torch_call(opened.model, opened.inputs())}
    if against is not None:
        calls[str(against)] = torch_call(store.load(against, opened.model), opened.inputs())
    return interleaved(calls, rounds=rounds)


def _ratios(
    opened: Opened, target: float, round_to: list[int] | None, options: dict[str, Any], step: Step
) -> list[report.RatioReport]:
    # The exporter takes a while to import.
    from effp_fx.bench.latency import measure

    rounding = round_to or [1, 8]
    given: dict[str, Any] = {"target_flops": target, "round_to": rounding, "progress": step, **options}
    return measure(opened.model, opened.example, opened.inputs(), **given)
