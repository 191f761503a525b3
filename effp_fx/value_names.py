"""Names for the inputs and outputs of an exported network: short, unique, and the same for the same model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx

from effp_fx.inputs import Example

_IMAGE_CHANNELS = (1, 3, 4)


def of_inputs(example: Example) -> list[str]:
    """A name for each tensor of the example, in pytree order.

    Keyword inputs keep their names; batches of images are `images`, single images of a list `image`, others `input`.
    """
    leaves, _ = pytree.tree_flatten_with_path([list(example.args), example.kwargs])
    names = []
    for path, leaf in leaves:
        half, *words = path_words(path)
        if isinstance(leaf, Tensor):
            names.append(".".join(words) if half == "1" else _kind(leaf))
    return unique(names, number_all=True)


def of_outputs(nodes: list[fx.Node], layers: set[fx.Node], out_spec: pytree.TreeSpec | None) -> tuple[str, ...]:
    """A name for each output: its keys in the model's output, where `out_spec` is given, else the module it is from."""
    keyed = _keys(out_spec, len(nodes)) if out_spec is not None else None
    if keyed is not None:
        return tuple(unique(keyed))
    homes = [str(node.meta.get("module", "")) for node in nodes]
    shared = Counter(homes)
    names = [
        home if home and shared[home] == 1 else _origin(node, layers) or home or "output"
        for node, home in zip(nodes, homes, strict=True)
    ]
    return tuple(unique(names))


def unique(names: Iterable[str], *, number_all: bool = False) -> list[str]:
    """The names in letters that every runtime takes; of several alike the second is `name_1`.

    With `number_all` the first of several alike is `name_0`.
    """
    safe = [re.sub(r"[^0-9A-Za-z_.]+", "_", name).strip("._") or "value" for name in names]
    total, seen, taken = Counter(safe), Counter[str](), set()
    result = []
    for name in safe:
        made = f"{name}_0" if number_all and total[name] > 1 else name
        while made in taken or (made != name and made in total):
            seen[name] += 1
            made = f"{name}_{seen[name]}"
        taken.add(made)
        result.append(made)
    return result


def _kind(tensor: Tensor) -> str:
    if tensor.ndim == 4 and tensor.shape[1] in _IMAGE_CHANNELS:
        return "images"
    return "image" if tensor.ndim == 3 and tensor.shape[0] in _IMAGE_CHANNELS else "input"


def _keys(spec: pytree.TreeSpec, count: int) -> list[str] | None:
    """`logits`, `boxes`, `output_0`: what leads to each tensor; None where the tree has leaves that are no tensors."""
    if spec.num_leaves != count:
        return None
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(count)), spec))
    if len(leaves) != count:
        return None
    names = []
    for path, _ in leaves:
        words = path_words(path)
        first = next((index for index, word in enumerate(words) if not word.isdigit()), None)
        names.append(".".join(words[first:]) if first is not None else "_".join(["output", *words]))
    return names


def path_words(path: Iterable[Any]) -> list[str]:
    """The keys, attributes and indices of a pytree path as text."""
    return [str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind))) for key in path]


def _origin(node: fx.Node, layers: set[fx.Node]) -> str:
    """The innermost module that holds every layer which the value comes from directly."""
    found: list[list[str]] = []
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if current in layers:
            found.append(str(current.meta.get("module", "")).split("."))
            continue
        fresh = [source for source in current.all_input_nodes if source not in seen]
        seen.update(fresh)
        pending += fresh
    if not found:
        return ""
    common = found[0]
    for path in found[1:]:
        same = [one == two for one, two in zip(common, path, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return ".".join(common)
