"""Example inputs: what a model is called with, how to change it as a whole, and a guess where nobody gave one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effp_fx.errors import InputError

_CALL = "example_inputs=torch.rand(1, 3, 224, 224)   # or a tuple of positional inputs, or a dict of keyword inputs"
_IMAGE_CHANNELS = (1, 3, 4)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPATIAL = {1: (256,), 2: (224, 224), 3: (16, 112, 112)}  # number of spatial dimensions -> their sizes; time first


@dataclass(frozen=True)
class Example:
    """The inputs of one call, ``model(*args, **kwargs)``."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Return every tensor of the inputs, in pytree order: positional first, keywords in their own order."""
        return [leaf for leaf in pytree.tree_leaves([self.args, self.kwargs]) if isinstance(leaf, Tensor)]


def as_example(value: Any) -> Example:
    """Read what a user may give as example inputs.

    An ``Example`` is returned as it is; a tuple is the positional inputs; a dict with string keys is the keyword
    inputs; anything else (a tensor, a list of images) is one positional input. A model whose single input is
    itself a tuple or a dict takes it wrapped: ``(the_dict,)``.

    Raises:
        InputError: there is no tensor in it.
    """
    if isinstance(value, Example):
        example = value
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):  # a named tuple is one input
        example = Example(value)
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        example = Example((), dict(value))
    else:
        example = Example((value,))
    if not example.tensors():
        raise InputError(
            "the example inputs hold no tensor",
            seen=_brief(value),
            expected="at least one tensor, anywhere in the inputs",
            mend=_CALL,
        )
    return example


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return ``tree`` with ``fn`` applied to each tensor in it; an ``Example`` gives an ``Example``."""
    if isinstance(tree, Example):
        return Example(*pytree.tree_map_only(Tensor, fn, (tree.args, tree.kwargs)))
    return pytree.tree_map_only(Tensor, fn, tree)


def to_dtype(example: Example, dtype: torch.dtype) -> Example:
    """Return the example with its floating tensors in ``dtype``; whole numbers and masks stay as they are."""
    cast: Example = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, example)
    return cast


def repeat_batch(example: Example, times: int) -> Example:
    """Return the example with a batch ``times`` as large.

    Tensors are repeated along dimension 0, lists (of images, of targets) by their items; scalars stay. Tensors
    inside a list belong to one sample each and are repeated as items, not stretched.
    """
    return Example(
        tuple(_repeat(value, times) for value in example.args),
        {name: _repeat(value, times) for name, value in example.kwargs.items()},
    )


def _repeat(value: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value] * times) if value.ndim else value
    if isinstance(value, list):
        return value * times
    if isinstance(value, tuple):
        items = [_repeat(item, times) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {key: _repeat(item, times) for key, item in value.items()}
    return value


def samples(example: Example) -> int:
    """Return the size of the batch: of the first list or tensor among the inputs."""
    sizes = [len(value) for _, value in _top_level(example) if isinstance(value, (list, Tensor)) and _is_batch(value)]
    return sizes[0] if sizes else 1


def first_samples(example: Example, count: int) -> Example:
    """Return the example with its first ``count`` samples, or as it is where it has no more of them."""
    whole = samples(example)

    def cut(value: Any) -> Any:
        if isinstance(value, (list, Tensor)) and _is_batch(value) and len(value) == whole:
            return value[:count]
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        return value

    if whole <= count:
        return example
    return Example(tuple(cut(value) for value in example.args), {k: cut(v) for k, v in example.kwargs.items()})


def _is_batch(value: list[Any] | Tensor) -> bool:
    return isinstance(value, list) or value.ndim > 0


def check_example(example: Example, model: nn.Module) -> None:
    """Refuse what can never run, before anything is traced.

    Raises:
        InputError: no tensor, an empty batch, or tensors on another device than the model.
    """
    as_example(example)
    for where, value in _top_level(example):
        empty = (isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 0) or value == []
        if empty:
            raise InputError(
                "the example inputs are an empty batch", where=where, seen=_brief(value), expected="one sample or more"
            )
    own, given = _devices(model.parameters()), _devices(example.tensors())
    if len(own) == 1 and len(given) == 1 and own != given:
        raise InputError(
            "the example inputs are not on the device of the model",
            seen=f"inputs on {given.pop()}, parameters on {own.pop()}",
            mend="move one of them: example_inputs.to(next(model.parameters()).device)",
        )


def describe_mismatch(example: Example, model: nn.Module) -> str | None:
    """Say in one line how the inputs differ in dtype from the model, for the message after a failed call.

    A difference is not an error by itself (a model may cast), so this never raises; None where nothing differs.
    """
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    given = {t.dtype for t in example.tensors() if t.is_floating_point()}
    if not own:
        return None
    if not given:
        return f"no floating input (dtypes {_names({t.dtype for t in example.tensors()})}), parameters {_names(own)}"
    return None if given <= own else f"inputs of dtype {_names(given)}, parameters of dtype {_names(own)}"


def infer_example(model: nn.Module) -> Example:
    """Guess inputs from the layers of a model that no adapter knows: the last resort.

    The first convolution that takes an image (1, 3 or 4 channels) decides, else the first convolution or linear
    layer, in the order of registration. Shapes: (1, C, 224, 224) for images, (1, C, 256) for 1-d, (1, C, 16, 112,
    112) for video, (1, F) for a linear layer; device and dtype of that layer's weight.

    Raises:
        InputError: there is no such layer.
    """
    layers = [m for m in model.modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear)) and _materialised(m)]
    images = [m for m in layers if isinstance(m, _CONVOLUTIONS) and m.in_channels in _IMAGE_CHANNELS]
    if not layers:
        raise InputError(
            f"no example inputs were given, and none can be inferred for {type(model).__name__}",
            seen="no convolution and no linear layer to read the input's shape from",
            mend=_CALL,
        )
    first = (images or layers)[0]
    if isinstance(first, nn.Linear):
        shape: tuple[int, ...] = (1, first.in_features)
    else:
        shape = (1, first.in_channels, *_SPATIAL[first.weight.ndim - 2])
    return Example((random_input(shape, like=first.weight),))


def random_input(shape: tuple[int, ...], *, like: Tensor, seed: int = 0) -> Tensor:
    """Return a tensor of ``shape``, uniform in [0, 1), the same for the same seed; device and dtype of ``like``."""
    generator = torch.Generator().manual_seed(seed)  # drawn on the CPU: the global random state is not touched
    return torch.rand(shape, generator=generator).to(device=like.device, dtype=like.dtype)


def _materialised(layer: nn.Module) -> bool:
    return not any(nn.parameter.is_lazy(parameter) for parameter in layer.parameters(recurse=False))


def _top_level(example: Example) -> Iterator[tuple[str, Any]]:
    yield from ((f"positional input {index}", value) for index, value in enumerate(example.args))
    yield from ((f"keyword input {name!r}", value) for name, value in example.kwargs.items())


def _devices(tensors: Any) -> set[torch.device]:
    return {tensor.device for tensor in tensors}


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
