"""How much of a cut of FLOPs shows as time, compact against dense in ONNX Runtime; writes docs/results/latency.md.

    python -m benchmarks.latency_ratio
    python -m benchmarks.latency_ratio --models ultralytics:yolov8n.yaml --rounds 20 --threads 1

Each model is pruned to half its FLOPs with channel counts rounded to 1, 8 and 16, and exported up to its raw heads.
All networks of a model are timed in one run, in turns, once for each number of threads; what is compared are medians. A
plan that cuts the FLOPs to a share s and the time to a share t has the ratio t / s: 1 is a cut that shows in full.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from effp_fx import models
from effp_fx.bench.latency import DENSE, exported
from effp_fx.evaluate.latency import interleaved, onnx_call
from effp_fx.models.randomise import randomise

SPECS = (
    "effp:ssd300_vgg16_bn",
    "torchvision:ssd300_vgg16",
    "ultralytics:yolov8n.yaml",
    "torchvision:ssdlite320_mobilenet_v3_large",
)
ROUND_TO = (1, 8, 16)
THREADS = (1, 2)
TARGET = 0.5
BOUND = 1.10
ROOT = Path(__file__).resolve().parent.parent


def measure(spec: str, round_to: tuple[int, ...], threads: tuple[int, ...], rounds: int, most: float) -> dict[str, Any]:
    """FLOPs and times of one model."""
    built = models.build(spec)
    torch.manual_seed(0)
    randomise(built.model, 0, example=built.example())
    with tempfile.TemporaryDirectory() as folder:
        networks = exported(
            built.model,
            built.given,
            Path(folder),
            target_flops=TARGET,
            round_to=round_to,
            progress=lambda line: say(f"{spec}: {line}"),
        )
        times: dict[str, dict[str, Any]] = {}
        for count in threads:
            say(f"{spec}: run with {count} threads")
            calls = {network.name: onnx_call(network.file, threads=count) for network in networks}
            for one in interleaved(calls, rounds=rounds, warmup=3, most_seconds=most):
                low, high = one.quartiles
                entry = {"median": one.median, "quartiles": [low, high], "rounds": len(one.seconds)}
                times.setdefault(one.name, {})[str(count)] = entry
    return {"model": spec, "flops": {network.name: network.flops for network in networks}, "times": times}


def say(line: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def ratios(found: dict[str, Any], name: str, threads: str) -> tuple[float, float]:
    """FLOPs kept and time kept."""
    kept = found["flops"][name] / found["flops"][DENSE]
    return kept, found["times"][name][threads]["median"] / found["times"][DENSE][threads]["median"]


def page(data: dict[str, Any]) -> str:
    """docs/results/latency.md."""
    lines = [
        "# How much of a cut shows as time",
        "",
        "<!-- Written by `python -m benchmarks.latency_ratio`; edit that, not this. -->",
        "",
        "Each detector pruned to at most half its FLOPs, dense and compact up to the raw heads in ONNX Runtime, all",
        "networks of a model in turns in one run; medians, the middle half in brackets. *Ratio* is time kept over",
        f"FLOPs kept: 1.00 is a cut that shows in full. With the best rounding it is to be at most {BOUND:.2f}.",
        "",
        *(f"- {name}: {value}" for name, value in data["machine"].items()),
        "",
        "No time of a Jetson stands here: TensorRT was not to be had. On a board that is",
        "`effp-fx latency out --against out_dense`.",
        "",
        "| model | threads | network | GFLOPs | FLOPs kept | time | time kept | ratio |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for found in data["models"]:
        for threads in found["times"][DENSE]:
            lines += [_row(found, name, threads) for name in found["flops"]]
    return "\n".join([*lines, "", *_verdicts(data["models"]), ""])


def _row(found: dict[str, Any], name: str, threads: str) -> str:
    kept, took = ratios(found, name, threads)
    entry = found["times"][name][threads]
    low, high = (1e3 * value for value in entry["quartiles"])
    shown = f"{1e3 * entry['median']:.1f} ms ({low:.1f} to {high:.1f})"
    ratio = "" if name == DENSE else f"{took / kept:.2f}"
    flops = f"{found['flops'][name] / 1e9:.2f}"
    return f"| {found['model']} | {threads} | {name} | {flops} | {kept:.3f} | {shown} | {took:.3f} | {ratio} |"


def _verdicts(models_found: list[dict[str, Any]]) -> list[str]:
    lines = []
    for found in models_found:
        for threads in found["times"][DENSE]:
            names = [name for name in found["flops"] if name != DENSE]
            quotients = {name: ratios(found, name, threads)[1] / ratios(found, name, threads)[0] for name in names}
            best = min(quotients, key=lambda name: quotients[name])
            word = "met" if quotients[best] <= BOUND else "not met"
            lines.append(f"- {found['model']}, {threads} threads: best {quotients[best]:.2f} with {best}; {word}.")
    return lines


def main() -> None:
    """Measure, then write the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SPECS), metavar="SPEC")
    parser.add_argument("--round-to", nargs="+", type=int, default=list(ROUND_TO))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--most-seconds", type=float, default=120.0, help="of one run; five rounds are run in any case")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of latency.md and .json")
    options = parser.parse_args()
    sizes, threads = tuple(options.round_to), tuple(options.threads)
    found = [measure(spec, sizes, threads, options.rounds, options.most_seconds) for spec in options.models]
    packages = ("torch", "onnxruntime", "ultralytics")
    data = {"machine": machine.describe(packages), "models": found}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "latency.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (options.out / "latency.md").write_text(page(data), encoding="utf-8")
    print((options.out / "latency.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
