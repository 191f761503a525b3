"""Runs a model that belongs to the caller and shows every op to a function, which may replace its results or end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effp_fx.call_site import Site, user_line
from effp_fx.op_mode import ALIASES, OpMode, op_tensors, op_text
from effp_fx.outlines import Outlines

_DROPOUT = {"aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout"}
_ATTENTION = "aten.scaled_dot_product_attention"
OpKey = tuple[Any, str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an op, as it ran."""

    target: Any
    args: Any
    kwargs: Any
    module: str
    source: str

    @property
    def name(self) -> str:
        """`aten.conv2d`: without the overload."""
        return op_text(self.target).rpartition(".")[0]

    @property
    def key(self) -> OpKey:
        """What is the same for an op in every run of a model."""
        return self.target, self.module, self.source


Watch = Callable[[Step, list[Tensor], list[Tensor]], list[Tensor] | None]
"""Called after each op with its step, results and inputs. What it returns takes the place of the results; what it
raises ends the run."""


class Watcher(OpMode):
    """Shows every op that returns or changes a tensor to `watch`; keeps nothing of the run but its last step.

    With `shapes_only` products come out as outlines. What the model then does that depends on values is another thing
    than what it would do.
    """

    def __init__(self, site: Site, watch: Watch, *, shapes_only: bool = False) -> None:
        super().__init__(site)
        self.watch = watch
        self._outlines = Outlines() if shapes_only else None
        self.last: Step | None = None
        """The op that was called last, whether or not it came back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = op_text(func)
        if name in ALIASES:
            output = func(*args, **kwargs)
            self.watch(Step(torch.ops.aten.clone.default, args, {}, self.site.module[0], user_line()), [output], [])
            return output
        self.last = Step(func, args, kwargs, self.site.module[0], user_line())
        output = None if self._outlines is None else self._outlines.result(func, args, kwargs)
        if output is None:
            output = _without_dropout(func, name, args, kwargs)
        outputs = op_tensors(output)
        if not outputs and not func._schema.is_mutable:
            return output
        replaced = self.watch(self.last, outputs, op_tensors((args, kwargs)))
        if replaced is None:
            return output
        return replaced[0] if isinstance(output, Tensor) else tuple(replaced)


def _without_dropout(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Call an op with dropout off. A watched run is there to be compared with another, of other sizes: both would drop
    other elements, and what is drawn after that would differ as well."""
    packet = name.removesuffix(".default")
    if packet in _DROPOUT:
        return args[0].clone()
    if packet.removesuffix("_") in _DROPOUT:
        return args[0]
    if packet == _ATTENTION:
        args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        kwargs = {key: value for key, value in kwargs.items() if key != "dropout_p"}
    return func(*args, **kwargs)
