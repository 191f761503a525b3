"""How much of a cut of FLOPs shows as time, compact against dense in ONNX Runtime; writes docs/results/latency.md.

    python -m benchmarks.latency_ratio --prepare      # prune and export; the machine may be busy
    python -m benchmarks.latency_ratio                # time, on a quiet machine
    python -m benchmarks.latency_ratio --models ultralytics:yolov8n.yaml --rounds 20 --threads 1

Each model is pruned to half its FLOPs with channel counts rounded to 1, 8 and 16, and with importance divided by the
memory or the time that a channel saves in place of its FLOPs; each is exported up to its raw heads.
All networks of a model are timed in one run, in turns, once for each number of threads; what is compared are medians. A
plan that cuts the FLOPs to a share s and the time to a share t has the ratio t / s: 1 is a cut that shows in full.

Files are kept, and so is each run as soon as it is over: what was cut off goes on where it stopped, `--again` times
the models anew; others that were timed before stay in the page, each with its date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import effp_fx
from benchmarks import machine, readme
from effp_fx import atomic_file, models
from effp_fx.bench.latency import profiled
from effp_fx.cost import COSTS, latency, register_cost
from effp_fx.evaluate.latency import interleaved, onnx_call
from effp_fx.evaluate.layer_times import layer_seconds
from effp_fx.export import export_onnx
from effp_fx.export.tensorrt import check_tensorrt
from effp_fx.models.randomise import randomise

SPECS = (
    "effp:ssd300_vgg16_bn",
    "ultralytics:yolov8n.yaml",
    "torchvision:ssdlite320_mobilenet_v3_large",
    "torchvision:fcos_resnet50_fpn?min_size=320&max_size=320",
)
LATENCY = "latency"
"""The cost from a table of this model's own layers, timed here."""
NETWORKS: dict[str, dict[str, Any]] = {
    "round_to=1": {"round_to": 1},
    "round_to=8": {"round_to": 8},
    "round_to=16": {"round_to": 16},
    "round_to=8, memory": {"round_to": 8, "cost": "memory"},
    "round_to=16, memory": {"round_to": 16, "cost": "memory"},
    "round_to=8, latency": {"round_to": 8, "cost": LATENCY},
    "round_to=16, latency": {"round_to": 16, "cost": LATENCY},
}
"""Options of `prune`, by the name in the table."""
THREADS = (1, 2)
TARGET = 0.5
DENSE = "dense"
BOUND = 1.10
MOST = 8
"""Layers that are listed as those whose time does not follow."""
ROOT = Path(__file__).resolve().parent.parent
Run = dict[str, Any]
"""The times of one model with one number of threads, by network."""


def exported(spec: str, root: Path, networks: list[str]) -> tuple[Path, dict[str, float]]:
    """Folder with NAME.onnx for each network, and FLOPs by name: the dense one's, and those asked for; made once."""
    folder = root / "".join(letter if letter.isalnum() else "-" for letter in spec)
    listed = folder / "flops.json"
    names = [DENSE, *networks]
    flops: dict[str, float] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    if all(name in flops for name in names):
        return folder, {name: flops[name] for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    built = models.build(spec)
    randomise(built.model, 0, example=built.example())
    for name in names:
        if name in flops:
            continue
        say(f"{spec}: {name}")
        network: nn.Module = built.model
        if name != DENSE:
            options = NETWORKS[name]
            if options.get("cost") == LATENCY:
                options = options | {"cost": f"{LATENCY} of {spec}"}
                if options["cost"] not in COSTS:
                    register_cost(options["cost"], latency(layer_seconds(built.model.eval(), built.example())))
            network = effp_fx.prune(built.model, built.given, target_flops=TARGET, **options)
        export_onnx(network, folder / f"{name}.onnx", built.given)
        flops[name] = 2.0 * sum(node.macs for node in check_tensorrt(folder / f"{name}.onnx").nodes)
        atomic_file.write(listed, json.dumps(flops).encode())
    return folder, {name: flops[name] for name in names}


def timed(folder: Path, names: list[str], threads: int, rounds: int, most: float) -> Run:
    """Median, quartiles and rounds of each network, in seconds."""
    calls = {name: onnx_call(folder / f"{name}.onnx", threads=threads) for name in names}
    found = interleaved(calls, rounds=rounds, warmup=3, most_seconds=most)
    return {
        one.name: {"median": one.median, "quartiles": list(one.quartiles), "rounds": len(one.seconds)} for one in found
    }


def stays(folder: Path, name: str, kept: float) -> list[list[Any]]:
    """What keeps more of its time than the FLOPs that are kept, or less: one thread, by ONNX Runtime's own profiler.

    Each layer with weights by itself, all other ops of a kind together: name, milliseconds in the dense network and in
    the compact one, and by how much they move the ratio of the whole. Those that move it most, the rest as one.
    """
    with tempfile.TemporaryDirectory() as spare:
        dense, small = (_by_layer(folder / f"{network}.onnx", Path(spare)) for network in (DENSE, name))
    whole = kept * sum(dense.values())
    rows = [(layer, dense.get(layer, 0.0), small.get(layer, 0.0)) for layer in {**dense, **small}]
    moved = [(layer, before, after, (after - kept * before) / whole) for layer, before, after in rows]
    moved.sort(key=lambda row: -row[3])
    shown, rest = moved[:MOST], moved[MOST:]
    shown.append(("the rest", *(sum(row[column] for row in rest) for column in (1, 2, 3))))
    return [[layer, 1e3 * before, 1e3 * after, by] for layer, before, after, by in shown]


def _by_layer(file: Path, folder: Path) -> dict[str, float]:
    """Seconds of one pass."""
    found: dict[str, float] = defaultdict(float)
    for name, (kind, seconds) in profiled(file, folder, threads=1, rounds=40).items():
        found[name if kind in ("Conv", "MatMul", "Gemm") else f"all of {kind}"] += seconds
    return dict(found)


def say(line: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def ratios(found: Run, name: str, threads: str) -> tuple[float, float]:
    """FLOPs kept and time kept."""
    kept = found["flops"][name] / found["flops"][DENSE]
    return kept, found["times"][threads][name]["median"] / found["times"][threads][DENSE]["median"]


def page(data: Run) -> str:
    """docs/results/latency.md."""
    lines = [
        "# How much of a cut shows as time",
        "",
        "<!-- Written by `python -m benchmarks.latency_ratio`; edit that, not this. -->",
        "",
        "Each detector pruned to at most half its FLOPs, dense and compact up to the raw heads in ONNX Runtime, all",
        "networks of a model in turns in one run; medians, the middle half in brackets. *Ratio* is time kept over",
        f"FLOPs kept: 1.00 is a cut that shows in full. With the best of them it is to be at most {BOUND:.2f}.",
        '*memory*: `prune(cost="memory")`, importance over the bytes that layers write; the target is the same.',
        '*latency*: `prune(cost="latency")`, over the time that each layer of the dense network takes in PyTorch.',
        "Where two threads take longer than one, what is timed is how this machine wakes its threads, not the network.",
        "",
        *(f"- {name}: {value}" for name, value in data["machine"].items()),
        "",
        "No time of a Jetson stands here, and none of a GPU: TensorRT is on no package index, and no GPU was at hand.",
        "On a board it is `effp-fx latency out --against out_dense`.",
        "",
        "| model | threads | network | GFLOPs | FLOPs kept | time | time kept | ratio |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for found in data["models"]:
        for threads in found["times"]:
            lines += [_row(found, name, threads) for name in found["flops"]]
    return "\n".join([*lines, "", *_verdicts(data["models"]), *_where(data["models"]), ""])


def in_short(models_found: list[Run]) -> str:
    """The table for the README: on one thread, without rounding and with the best network."""
    lines = ["| model | FLOPs kept | time kept | with | time kept, `round_to=1` |", "| --- | --: | --: | --- | --: |"]
    for found in models_found:
        if "1" not in found["times"]:
            continue
        best = _best(found, "1")
        kept, took = ratios(found, best, "1")
        plain = f"{ratios(found, 'round_to=1', '1')[1]:.3f}" if "round_to=1" in found["flops"] else "-"
        name = found["model"].partition(":")[2].partition("?")[0].removesuffix(".yaml")
        lines.append(f"| {name} | {kept:.3f} | {took:.3f} | {best} | {plain} |")
    return "\n".join(lines)


def _quotient(found: Run, name: str, threads: str) -> float:
    kept, took = ratios(found, name, threads)
    return took / kept


def _best(found: Run, threads: str, begins: str = "") -> str:
    """The network whose time follows its FLOPs best, of those whose name begins so; of all where none does."""
    names = [name for name in found["flops"] if name != DENSE]
    named = [name for name in names if name.startswith(begins)]
    return min(named or names, key=lambda name: _quotient(found, name, threads))


def _row(found: Run, name: str, threads: str) -> str:
    kept, took = ratios(found, name, threads)
    entry = found["times"][threads][name]
    low, high = (1e3 * value for value in entry["quartiles"])
    shown = f"{1e3 * entry['median']:.1f} ms ({low:.1f} to {high:.1f})"
    ratio = "" if name == DENSE else f"{took / kept:.2f}"
    flops = f"{found['flops'][name] / 1e9:.2f}"
    return f"| {found['model']} | {threads} | {name} | {flops} | {kept:.3f} | {shown} | {took:.3f} | {ratio} |"


def _verdicts(models_found: list[Run]) -> list[str]:
    lines = []
    for found in models_found:
        for threads in found["times"]:
            best = _best(found, threads)
            quotient = _quotient(found, best, threads)
            word = "met" if quotient <= BOUND else "not met"
            plural = "" if threads == "1" else "s"
            measured = f"- {found['model']}, {threads} thread{plural}, {found['date']}"
            lines.append(f"{measured}: best {quotient:.2f} with {best}; {word}.")
    return lines


def _where(models_found: list[Run]) -> list[str]:
    lines = [
        "",
        "## Where the time stays",
        "",
        "Of the best network on one thread, and of the best of those rounded to 8, by ONNX Runtime's profiler: what",
        "moves the ratio up most. A layer that kept as much of its time as the network of its FLOPs would move it by",
        "nothing. ONNX Runtime works on blocks of 16 channels where the processor has AVX-512, of 8 otherwise: a",
        "layer of one block keeps all of its time.",
    ]
    for found in models_found:
        for network, rows in found.get("stays", {}).items():
            lines += ["", f"{found['model']}, {network}:", ""]
            lines += ["| layer | dense, ms | compact, ms | moves the ratio by |", "|---|--:|--:|--:|"]
            lines += [f"| {name} | {was:.2f} | {now:.2f} | {by:+.3f} |" for name, was, now, by in rows]
    return lines


def main() -> None:
    """Measure what is missing, then write the page."""
    options = _options()
    stored = options.out / "latency.json"
    kept: list[Run] = []
    if stored.is_file():
        kept = json.loads(stored.read_text(encoding="utf-8"))["models"]
    if options.again:
        kept = [run for run in kept if run["model"] not in options.models]
    for spec in options.models:
        folder, flops = exported(spec, options.files, options.networks)
        if options.prepare:
            continue
        found = next((run for run in kept if run["model"] == spec and run["flops"] == flops), None)
        if found is None:
            found = {"model": spec, "date": datetime.date.today().isoformat(), "flops": flops, "times": {}}
            kept = [run for run in kept if run["model"] != spec] + [found]
        for threads in options.threads:
            if str(threads) in found["times"]:
                continue
            say(f"{spec}: {threads} threads")
            found["times"][str(threads)] = timed(folder, list(flops), threads, options.rounds, options.most_seconds)
            if threads == 1:
                shown = dict.fromkeys((_best(found, "1"), _best(found, "1", "round_to=8")))
                found["stays"] = {name: stays(folder, name, ratios(found, name, "1")[0]) for name in shown}
            _write(options.out, kept)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SPECS), metavar="SPEC")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--most-seconds", type=float, default=90.0, help="of one run; five rounds are run in any case")
    parser.add_argument("--prepare", action="store_true", help="prune and export, and time nothing")
    parser.add_argument("--again", action="store_true", help="time the models anew that are there already")
    parser.add_argument("--files", type=Path, default=ROOT / "build" / "latency", help="folder of the ONNX files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of latency.md and .json")
    return parser.parse_args()


def _write(out: Path, kept: list[Run]) -> None:
    kept = sorted(kept, key=lambda run: run["model"])
    facts = machine.describe(("torch", "onnxruntime", "ultralytics"))
    data = {"machine": facts | {"command": "python -m benchmarks.latency_ratio"}, "models": kept}
    out.mkdir(parents=True, exist_ok=True)
    atomic_file.write(out / "latency.json", (json.dumps(data, indent=1) + "\n").encode())
    atomic_file.write(out / "latency.md", page(data).encode())
    readme.put(out.parent, "latency", in_short(kept))


if __name__ == "__main__":
    main()
