"""Loads the weights of a dense model from a file that a run wrote, or from plain safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from effp_fx import weights_file
from effp_fx.errors import FileFormatError, PlanMismatchError
from effp_fx.train import checkpoint

_SHOWN = 4


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights into a dense model: of dense.safetensors, of a checkpoint, or of any plain safetensors file.

    Of a checkpoint that has a moving average this is taken. Nothing is changed unless everything fits.

    Raises:
        FileFormatError: the file cannot be read, or holds no state_dict.
        PlanMismatchError: names or shapes differ from the model's.
    """
    where = os.fspath(path)
    tensors = _read(where)
    own = model.state_dict()
    wrong = [f"{name}: not in the file" for name in own if name not in tensors]
    wrong += [f"{name}: in the file only" for name in tensors if name not in own]
    wrong += [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = len(wrong) - _SHOWN
        raise PlanMismatchError(
            f"the weights in the file are not for this {type(model).__name__}",
            where=where,
            seen="; ".join(wrong[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            mend="name the model as it was trained, its num_classes included: MODEL?num_classes=21",
        )
    model.load_state_dict(tensors)


def _read(where: str) -> Mapping[str, Tensor]:
    try:
        tensors, notes = weights_file.read(where)
    except FileFormatError as error:
        if "was not written by effp_fx" not in error.what:
            raise
        try:
            return load_file(where)
        except SafetensorError as cause:
            raise FileFormatError("the file cannot be read", where=where, seen=str(cause)) from cause
    if "plan" in notes:
        raise FileFormatError(
            "these are the weights of a compact model",
            where=where,
            mend="name the file itself as the MODEL: it knows how its model is built",
        )
    if notes.get("kind") != checkpoint.KIND:
        return tensors
    average = {name.removeprefix(_AVERAGE): value for name, value in tensors.items() if name.startswith(_AVERAGE)}
    return average or {n.removeprefix(_MODEL): v for n, v in tensors.items() if n.startswith(_MODEL)}


_MODEL, _AVERAGE = "model/", "average/module."
"""How the names of a checkpoint's tensors begin."""
