"""Dense against EFFP at half the FLOPs, both trained by Ultralytics for equal epochs: mAP and time in its own numbers.

    python -m benchmarks.integrations_map [--models yolov8n.yaml,yolo11n.yaml] [--seeds 2] [--epochs 15] [--images 1000]

Every run is a process of its own and a line in docs/results/integrations_map.jsonl; a line that is there is not run
again. `seconds` is the clock's from the call of `train` to its return, analysis and compaction included, on as many
threads as given, `cpu_seconds` the processor's; mAP is that of best.pt on images that neither training nor the choice
of best.pt has seen. The optimizer steps at every batch (`nbs=16`): with Ultralytics' default of 64 images a step, so
few images make a few hundred steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import readme

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "integrations_map.jsonl"
PAGE = RESULTS.with_suffix(".md")
SIDE, BATCH = 128, 16


def main() -> int:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="yolov8n.yaml,yolo11n.yaml")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="where the scenes lie or shall lie; a temporary folder if not given")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("\n" + json.dumps(trained(**json.loads(options.child))))
        return 0
    if not options.page:
        with tempfile.TemporaryDirectory() as place:
            run_all(options, options.data or Path(place) / "scenes")
    write(PAGE, rows())
    return 0


def write(where: Path, found: list[dict[str, Any]]) -> None:
    """The page, and the table of the README beside its docs folder."""
    where.write_text(page(found))
    readme.put(where.parent.parent, "map", in_short(found))


def run_all(options: argparse.Namespace, root: Path) -> None:
    """Each model, seed and method that has no line yet, in turn, so that a run that ends early compares something."""
    from effp_fx.data import write_scenes

    write_scenes(root, images=options.images, size=SIDE, layout="yolo", processes=options.threads)
    for seed in range(options.seeds):
        for model in options.models.split(","):
            for method in ("dense", "effp"):
                key = {
                    "model": model,
                    "method": method,
                    "seed": seed,
                    "epochs": options.epochs,
                    "images": options.images,
                    "threads": options.threads,
                }
                if any(key.items() <= row.items() for row in rows()):
                    continue
                row = key | child(data=str(root / "data.yaml"), **key)
                print(json.dumps(row), flush=True)
                if "error" not in row:
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def child(**arguments: Any) -> dict[str, Any]:
    """One run in a process of its own, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as place:
        quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": place, "MPLBACKEND": "Agg"}
        threads = {"OMP_NUM_THREADS": str(arguments["threads"]), "PYTHONPATH": str(ROOT)}
        given = json.dumps({**arguments, "folder": place})
        command = [sys.executable, "-m", "benchmarks.integrations_map", "--child", given]
        done = subprocess.run(
            command, cwd=place, env={**os.environ, **quiet, **threads}, capture_output=True, text=True
        )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def trained(
    model: str, method: str, seed: int, epochs: int, images: int, threads: int, data: str, folder: str
) -> dict[str, Any]:
    """Train, then judge best.pt on the test split, both by Ultralytics."""
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(threads)
    yolo = YOLO(model)
    pruning = None
    if method == "effp":
        from effp_fx.integrations.ultralytics import prune_trainer

        pruning = prune_trainer(yolo, target_flops=0.5)
    shared = {
        "data": data,
        "imgsz": SIDE,
        "batch": BATCH,
        "nbs": BATCH,
        "workers": 0,
        "plots": False,
        "project": folder,
    }
    # The default close_mosaic=10 would leave a short run hardly any mosaic: a third of it is without.
    start, cpu_start = time.perf_counter(), time.process_time()
    yolo.train(**shared, epochs=epochs, seed=seed, close_mosaic=epochs // 3, patience=0, optimizer="SGD", lr0=0.01)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    best = YOLO(Path(folder) / "train" / "weights" / "best.pt")
    judged = best.val(split="test", name="test", **shared)
    return {
        "flops": 1.0 if pruning is None else pruning.flops,
        "params": 1.0 if pruning is None else pruning.params,
        "weights": sum(value.numel() for value in best.model.parameters()),
        "map50_95": float(judged.box.map),
        "map50": float(judged.box.map50),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }


def rows() -> list[dict[str, Any]]:
    """What has been run."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def in_short(found: list[dict[str, Any]]) -> str:
    """The table for the README: means over the seeds that both have."""
    lines = ["| | seeds | mAP, dense | mAP, pruned | FLOPs | parameters |", "| --- | --: | --: | --: | --: | --: |"]
    by_run = {(row["model"], row["method"], row["seed"]): row for row in found}
    for model in sorted({row["model"] for row in found}, reverse=True):
        seeds = [seed for name, method, seed in by_run if (name, method) == (model, "effp")]
        both = [(by_run[model, "dense", seed], by_run[model, "effp", seed]) for seed in seeds]
        dense, pruned, flops, params = (
            statistics.mean(pair[which][kind] for pair in both)
            for which, kind in ((0, "map50_95"), (1, "map50_95"), (1, "flops"), (1, "params"))
        )
        lines.append(f"| {model} | {len(both)} | {dense:.3f} | {pruned:.3f} | {flops:.1%} | {params:.1%} |")
    return "\n".join(lines)


def page(found: list[dict[str, Any]]) -> str:
    """The page: a line for each run."""
    lines = [
        "# YOLO in Ultralytics' own training: dense, and pruned to half its FLOPs",
        "",
        "Written by `python -m benchmarks.integrations_map`. Equal epochs, equal data (scenes of our generator, "
        f"{SIDE} pixels, drawn at the default difficulty), an optimizer step at every batch of "
        f"{BATCH}, Ultralytics' own mAP of best.pt on the test split.",
        "",
        "*CPU* is the processor's seconds of the process, which others on the machine hardly change.",
        "",
        "| model | method | seed | epochs | images | FLOPs | parameters | mAP50-95 | mAP50 | seconds | CPU |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(found, key=lambda one: (one["model"], one["epochs"], one["seed"], one["method"])):
        lines.append(
            f"| {row['model']} | {row['method']} | {row['seed']} | {row['epochs']} | {row['images']} "
            f"| {row['flops']:.1%} | {row['params']:.1%} | {row['map50_95']:.3f} | {row['map50']:.3f} "
            f"| {row['seconds']:.0f} | {row['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
