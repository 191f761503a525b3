"""Run one measurement in a process of its own, under a time limit, so that nothing it does can touch the others."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False", "PYTHONWARNINGS": "ignore"}


# What every measurement imports, loaded once in a server from which each measurement is forked.
PRELOADED = ["torch", "torchvision", "torch_pruning", "effp_fx", "timm", "transformers", "ultralytics"]


def run(module: str, arguments: list[str], *, limit_s: float, threads: int = 1) -> dict[str, Any]:
    """Run `module.main()` with these arguments and `--json FILE` in a process of its own; return what it wrote to FILE.

    Seconds are the processor's, of that process, so that a busy machine changes neither what is measured nor what
    comes to an end. A run past limit_s of them (or 20 times as long by the clock) gives {"status": "timeout"}; one
    that dies gives {"status": "crash"} with its error, or the signal that ended it. "wall_s" is in every answer.
    """
    os.environ.update(OFFLINE | {"OMP_NUM_THREADS": str(threads)})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        start = time.perf_counter()
        process = context.Process(target=_child, args=(module, [*arguments, "--json", str(answer)], folder, limit_s))
        process.start()
        process.join(20 * limit_s)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode in (-signal.SIGKILL, -signal.SIGXCPU) and not answer.exists():
            result = {"status": "timeout", "message": f"no answer after {limit_s:.0f} s of processor time"}
        else:
            result = _answer(answer, Path(folder) / "error", process.exitcode or 0)
        result["wall_s"] = round(time.perf_counter() - start, 3)
        return result


def _child(module: str, arguments: list[str], folder: str, limit_s: float) -> None:
    """In the forked process: a session of its own, nothing on the terminal, the error in a file."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s), resource.RLIM_INFINITY))
    time.perf_counter = time.process_time  # what is measured, in this process only
    sys.argv = [module, *arguments]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            importlib.import_module(module).main()
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                return
            Path(folder, "error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            os._exit(1)


def _answer(answer: Path, error: Path, exitcode: int) -> dict[str, Any]:
    if exitcode < 0:
        return {"status": "crash", "message": f"ended by signal {signal.Signals(-exitcode).name}"}
    if answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    lines = error.read_text(encoding="utf-8").splitlines() if error.exists() else []
    return {"status": "crash", "message": lines[0][:300] if lines else f"exit status {exitcode}"}


def peak_mebibytes() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts it in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 * 1024.0 if sys.platform == "darwin" else 1024.0)
