"""Where an op is called: the module that runs, and the innermost line of the user's own code."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

_HERE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
RUNNER = "run_recorded"
"""The function under which a model runs: no user's code lies beyond it."""


@dataclass
class Site:
    """Where in the module tree a run stands."""

    names: dict[int, str]
    stack: list[tuple[str, str]] = field(default_factory=list)

    def enter(self, module: nn.Module, _args: Any) -> None:
        self.stack.append((self.names.get(id(module), ""), type(module).__name__))

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self.stack:
            self.stack.pop()

    @property
    def module(self) -> tuple[str, str]:
        for name, kind in reversed(self.stack):
            if name:
                return name, kind
        return "", self.stack[0][1] if self.stack else ""


@cache
def _users_file(path: str) -> str:
    """The name of a source file of the user's; "" for torch's, for this package's and for generated code."""
    return "" if path.startswith((_TORCH, _HERE, "<")) else Path(path).name


def user_line() -> str:
    """The innermost line outside torch and this package: the user's own code."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        name = _users_file(code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}, in {code.co_name}"
        if code.co_name == RUNNER and code.co_filename.startswith(_HERE):
            return ""
        frame = frame.f_back  # type: ignore[assignment]  # typeshed: f_back is None only at the bottom, the loop's end
    return ""


def user_frame(error: BaseException) -> str | None:
    """The innermost line outside torch and this package at which an error passed."""
    trace, place = error.__traceback__, None
    while trace is not None:
        code = trace.tb_frame.f_code
        if name := _users_file(code.co_filename):
            place = f"{name}:{trace.tb_lineno}, in {code.co_name}"
        trace = trace.tb_next
    return place
