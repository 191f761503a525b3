"""The table of docs/integrations.md: each tool trains, is killed, goes on, is loaded without effp_fx and exported.

    python -m benchmarks.integrations             # run the tools: docs/results/integrations_tools.jsonl, and the table
    python -m benchmarks.integrations --table     # the table alone, from the files of all tools

A row that is in the file already is kept, so that a run that was broken off goes on; `--again` runs all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks import integration_nets as nets
from benchmarks import integration_tools
from effp_fx import atomic_file

ROOT = Path(__file__).parents[1]
FILES = tuple(ROOT / "docs" / "results" / f"integrations_{tools}.jsonl" for tools in ("tools", "ultralytics"))
PAGE = ROOT / "docs" / "integrations.md"
BEGIN, END = "<!-- integrations:begin -->", "<!-- integrations:end -->"
COLUMNS = {
    "tool": "tool",
    "model": "model",
    "trains": "trains",
    "target_met": "target met",
    "equal": "masked == compact",
    "loads": "loads in the plain tool",
    "val_equal": "val equal",
    "exports": "exports",
    "resumes": "resumes after a kill",
    "note": "note",
}
Row = dict[str, str]
# tool, network, processes, title
RUNS = (
    ("lightning", "ssd", 1, "Lightning"),
    ("timm", "resnet", 1, "timm"),
    ("ddp", "ssd", 2, "DistributedDataParallel, 2 processes"),
    ("accelerate", "ssd", 2, "Accelerate, 2 processes"),
    ("transformers", "detr", 1, "Transformers"),
    ("transformers", "rt_detr", 1, "Transformers"),
    ("torchvision", "ssdlite", 1, "torchvision's loop"),
)
_PACKAGES = {"lightning": "lightning.pytorch", "transformers": "transformers.trainer", "timm": "timm.optim"}

_PLAIN = """
import sys, warnings
sys.modules["effp_fx"] = None
warnings.simplefilter("ignore")
from benchmarks import integration_nets as nets
import torch
name, path = {name!r}, {path!r}
{load}
print(repr(nets.outputs(name, model)))
"""
_LOAD = {
    "lightning": "model = nets.lightning_module(name).load_from_checkpoint(path, weights_only=True).network",
    "transformers": "from transformers import AutoModelForObjectDetection as M; model = M.from_pretrained(path)",
    "timm": "import timm; model = timm.create_model('resnet18', num_classes=nets.CLASSES, checkpoint_path=path)",
    "accelerate": "from accelerate import load_checkpoint_in_model as f; model = nets.build(name); f(model, path)",
    "": "model = nets.build(name); model.load_state_dict(torch.load(path, weights_only=True)['state_dict'])",
}


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process, on this machine; of one process nothing about ranks."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes == 1:
        return quiet
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return (
        quiet
        | {key: str(value) for key, value in ranks.items()}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )


def _child(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = ["integration_tools", *arguments]
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            integration_tools.main()
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None


def _run(arguments: list[str], folder: Path, processes: int) -> tuple[int, str]:
    """Run a tool in forked processes, so that nothing is imported again; (the worst exit code, what was printed)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    log = folder / "log"
    children = [
        context.Process(target=_child, args=(arguments, log, _environment(rank, processes, port)))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    codes = [child.exitcode or 0 for child in children]
    return max(codes, key=abs), log.read_text()


def _loaded(tool: str, net: str, found: dict[str, Any]) -> str:
    """The cell of the checkpoint: loaded in a new process, by the tool alone."""
    code = _PLAIN.format(name=net, path=found["checkpoint"], load=_LOAD.get(tool, _LOAD[""]))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        return _reason(done.stderr)
    return _close(float(done.stdout.split()[-1]), found["outputs"])


def _reason(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return "no: " + " ".join((errors or lines or ["no message"])[-1].split())[:140]


def measured(tool: str, net: str, processes: int, title: str, folder: Path) -> Row:
    """One row: a whole run, a run that is killed and goes on, and the checkpoint in a process without effp_fx."""
    row = dict.fromkeys(COLUMNS, "-") | {"tool": title, "model": nets.TITLES[net], "note": ""}
    whole, cut = folder / "whole", folder / "cut"
    whole.mkdir(), cut.mkdir()
    importlib.import_module(_PACKAGES.get(tool, "torch"))
    code, text = _run([tool, net, str(whole), "--cells"], whole, processes)
    if code:
        return row | {"trains": _reason(text)}
    found = json.loads((whole / "cells.json").read_text())
    row |= found["cells"] | {"loads": _loaded(tool, net, found)}
    # In the middle of the fourth epoch of five: checkpoints of three are there, and the mask has just been fixed.
    die_at = 3 * nets.IMAGES // processes + nets.BATCH + 1
    row["resumes"] = _resumed([tool, net, str(cut)], cut, whole, processes, die_at)
    if row["resumes"] != "yes" and tool == "transformers":
        control = f"resumes without a session: {_control(net, folder, die_at)}"
        row["note"] = "; ".join(filter(None, [row["note"], control]))
    return row


def _control(net: str, folder: Path, die_at: int) -> str:
    """Whether the Trainer by itself resumes this network to the last bit."""
    whole, cut = folder / "control", folder / "control_cut"
    whole.mkdir(), cut.mkdir()
    arguments = ["transformers", net, "--control"]
    code, text = _run([*arguments, str(whole)], whole, 1)
    return _reason(text) if code else _resumed([*arguments, str(cut)], cut, whole, 1, die_at)


def _close(one: float, two: float) -> str:
    return "yes" if abs(one - two) <= 1e-4 * abs(two) else f"no: outputs {one:.6g}, of the compact model {two:.6g}"


def _resumed(arguments: list[str], cut: Path, whole: Path, processes: int, die_at: int) -> str:
    code, text = _run([*arguments, "--die-at", str(die_at)], cut, processes)
    if (cut / "end.pt").exists() or code == 0:
        return f"no: it was not killed: {_reason(text)}"
    code, text = _run(arguments, cut, processes)
    if code:
        return _reason(text)
    ends: list[dict[str, Any]] = [torch.load(place / "end.pt", weights_only=True) for place in (whole, cut)]
    differing = [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])]
    return f"no: {len(differing)} parameters differ, {differing[0]} first" if differing else "yes"


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = f"| {' | '.join(COLUMNS.values())} |\n|{'---|' * len(COLUMNS)}"
    lines = ["| " + " | ".join(row[key].replace("|", "\\|") for key in COLUMNS) + " |" for row in rows]
    return "\n".join([head, *lines])


def write_table() -> None:
    """Put the table of all result files between the marks of the page."""
    rows = [row for path in FILES for row in _rows(path)]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    atomic_file.write(PAGE, f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="run what was run before")
    parser.add_argument("--only", help="the tools whose name has this in it")
    args = parser.parse_args()
    path = FILES[0]
    rows = {(row["tool"], row["model"]): row for row in _rows(path)}
    for tool, net, processes, title in () if args.table else RUNS:
        known = (title, nets.TITLES[net]) in rows and not args.again
        if known or (args.only and args.only not in tool):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[title, nets.TITLES[net]] = row = measured(tool, net, processes, title, Path(folder))
        print(json.dumps(row), flush=True)
        text = "".join(json.dumps(row) + "\n" for row in rows.values())
        atomic_file.write(path, text.encode())
    write_table()


if __name__ == "__main__":
    main()
