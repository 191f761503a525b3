"""The `effp:` family: tiny nets of our own, each with one hard case, quick enough to try everything on."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from effp_fx.inputs import Example, random_input
from effp_fx.models import tiny, tiny_attention, tiny_odd
from effp_fx.models.registry import Adapter, reference_tensor
from effp_fx.models.spec import unknown_name, wrong_options
from effp_fx.models.tiny import TinyNet

TINY: dict[str, type[TinyNet]] = {**tiny.NETS, **tiny_odd.NETS, **tiny_attention.NETS}
"""Name in a spec -> class; its docstring says what is hard about it."""


class TinyAdapter(Adapter):
    """``effp:NAME``; option ``width`` (a multiple of 8, default 16) scales every layer."""

    name: ClassVar[str] = "effp"

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the tiny net ``name``; ModelNameError for unknown names and options."""
        if name not in TINY:
            raise unknown_name(self.name, name, TINY)
        try:
            return TINY[name](**options).eval()
        except (TypeError, ValueError) as error:
            raise wrong_options(self.name, name, error) from error

    def knows(self, model: nn.Module) -> bool:
        """Say whether it is one of ours."""
        return isinstance(model, TinyNet)

    def example(self, model: nn.Module) -> Example:
        """Return the inputs of the shapes that the class lists: a batch of two, so that mixed-up batches show."""
        assert isinstance(model, TinyNet)
        like = reference_tensor(model)
        return Example(tuple(random_input(shape, like=like, seed=i) for i, shape in enumerate(model.input_shapes)))
