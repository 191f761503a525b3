"""Run one measurement in a process of its own, under a time limit, so that nothing it does can touch the others."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False", "PYTHONWARNINGS": "ignore"}


def run(module: str, arguments: list[str], *, limit_s: float, threads: int = 1) -> dict[str, Any]:
    """Run `python -m module *arguments --json FILE`; return what it wrote to FILE.

    A run past limit_s seconds gives {"status": "timeout"}; one that dies gives {"status": "crash"} with the last line
    it wrote to stderr, or the signal that ended it. "wall_s" is in every answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", module, *arguments, "--json", str(answer)]
        environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(threads)}
        start = time.perf_counter()
        result = _finish(command, environment, limit_s)
        if result is None:
            result = json.loads(answer.read_text(encoding="utf-8"))
        result["wall_s"] = round(time.perf_counter() - start, 3)
        return result


def peak_mebibytes() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts it in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 * 1024.0 if sys.platform == "darwin" else 1024.0)


def _finish(command: list[str], environment: dict[str, str], limit_s: float) -> dict[str, Any] | None:
    """None when the process ended well, else the answer to give in its place."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"status": "timeout", "message": f"no answer after {limit_s:.0f} s"}
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return {"status": "crash", "message": f"ended by signal {signal.Signals(-process.returncode).name}"}
    lines = [line for line in errors.splitlines() if line.strip()]
    return {"status": "crash", "message": lines[-1][:300] if lines else f"exit status {process.returncode}"}
