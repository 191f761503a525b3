"""Latency of networks measured side by side: taken in turns in one run, so that a busy machine slows all alike."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from effp_fx.errors import FileFormatError
from effp_fx.inputs import Example

Call = Callable[[], object]
_LEAST = 5
"""Rounds that are run whatever time they take: a median of fewer says little."""


@dataclass(frozen=True)
class Latency:
    """The times of one network, in seconds, in the order of the rounds."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds: a quarter of the rounds was faster than the first, a quarter slower than the second."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def percentile(self, share: float) -> float:
        """Seconds that this part of the rounds did not exceed: 0.99 is all but the slowest hundredth."""
        return float(np.quantile(self.seconds, share))

    @property
    def per_second(self) -> float:
        """Runs a second, one after the other."""
        return len(self.seconds) / sum(self.seconds)


def interleaved(
    calls: Mapping[str, Call], *, rounds: int = 20, warmup: int = 2, most_seconds: float = 60.0
) -> tuple[Latency, ...]:
    """Time each call once a round, in an order that turns round every time.

    Args:
        calls: name -> what to time; it returns when the work is done.
        rounds: as many times as each is timed, at most.
        warmup: rounds before that which do not count.
        most_seconds: no round is begun after so long, but five are run in any case.
    """
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    begin = time.perf_counter()
    for number in range(max(rounds, 1)):
        if number >= _LEAST and time.perf_counter() - begin > most_seconds:
            break
        for name, call in order if number % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return tuple(Latency(name, tuple(taken)) for name, taken in times.items())


def torch_call(model: nn.Module, example: Example) -> Call:
    """One forward pass in eval mode without gradients; on an accelerator the pass is waited for."""
    model.eval()
    devices = {tensor.device for tensor in example.tensors() if tensor.device.type == "cuda"}

    def call() -> object:
        with torch.inference_mode():
            outputs = model(*example.args, **example.kwargs)
        for device in devices:
            torch.cuda.synchronize(device)
        return outputs

    return call


def onnx_call(path: str | os.PathLike[str], seed: int = 0, threads: int = 0) -> Call:
    """One run of an ONNX file in ONNX Runtime on the CPU, on random inputs; free dimensions are 1.

    Args:
        path: the file.
        seed: of the inputs.
        threads: for the work within an op; 0: as many as there are cores.

    Raises FileFormatError for what ONNX Runtime cannot read.
    """
    session = _session(path, _options(threads))
    feeds = _feeds(session, seed)
    return lambda: session.run(None, feeds)


def onnx_profile(path: str | os.PathLike[str], folder: Path, *, runs: int, threads: int = 0) -> list[dict[str, Any]]:
    """The events that ONNX Runtime's own profiler wrote of so many runs, as it has them: `cat`, `name`, `dur` in us.

    Args:
        path: the file.
        folder: where the profiler may write.
        runs: of the whole network.
        threads: for the work within an op; 0: as many as there are cores.
    """
    options = _options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = _session(path, options)
    feeds = _feeds(session, 0)
    for _ in range(runs):
        session.run(None, feeds)
    found: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return found


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def _session(path: str | os.PathLike[str], options: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class of their own
        raise FileFormatError("ONNX Runtime cannot read the file", where=os.fspath(path), seen=_line(error)) from error


def _feeds(session: Any, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for item in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in item.shape]
        floating = item.type in ("tensor(float)", "tensor(double)", "tensor(float16)")
        dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64}.get(item.type)
        values = random.random(shape) if floating else np.ones(shape)
        feeds[item.name] = values.astype(dtype or np.float32)
    return feeds


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
