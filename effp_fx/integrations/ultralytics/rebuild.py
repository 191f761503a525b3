"""Writes the model configuration from which Ultralytics itself builds a compact network again, for more training.

`YOLO("best.pt").train()` does not train the network in the file: it builds one anew from `model.yaml`, and copies the
weights whose shapes fit. A yaml says widths by a rule for all layers, which a pruned network does not follow. But its
rows name what is called with which arguments, and `deepcopy` is among the names that Ultralytics knows: a row
`[-1, 1, "deepcopy", [layer]]` builds a copy of a layer that lies in the configuration itself. These are the network's
own layers, so that the file is as large as before, and all in it is of Ultralytics' and torch's classes.

Such a row reads one layer. Heads read several, so all before the head becomes one layer, which hands out a list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.capture import tensors_of
from effp_fx.models.spec import import_family
from effp_fx.module_copy import copied

Configuration = dict[str, Any]
_COPY = "deepcopy"
_SIDE = 256
"""Of the images that it is tried on, pixels: a multiple of every stride, as Ultralytics itself takes."""


def configuration(network: Any) -> Configuration | None:
    """The yaml of a compact network, tried: what it builds, with the weights loaded, computes the same.

    Args:
        network: a model of `ultralytics.nn.tasks`, in float32, its layers cut.

    Returns None where none of the ways builds it; its own yaml then still builds the dense network.
    """
    ways: tuple[Callable[[Any], list[Any] | None], ...] = (_each_alone, _dense_head, _one_and_head)
    for way in ways:
        rows = way(network)
        if rows is None or len(rows) != len(network.model):
            continue
        made = {**network.yaml, "backbone": rows[:-1], "head": rows[-1:]}
        if _builds(network, made):
            return made
    return None


def _each_alone(network: Any) -> list[Any] | None:
    """A row for each layer, where none reads several."""
    if not all(isinstance(layer.f, int) for layer in network.model):
        return None
    return [[layer.f, 1, _COPY, [layer]] for layer in network.model]


def _one_and_head(network: Any) -> list[Any]:
    """All before the head as one layer, and the head; what lies between hands on, so that the head keeps its number."""
    head = network.model[-1]
    handed_on = [[-1, 1, "nn.Identity", []] for _ in range(head.i - 1)]
    return [[-1, 1, _COPY, [_before_head(network)]], *handed_on, [-1, 1, _COPY, [head]]]


def _dense_head(network: Any) -> list[Any] | None:
    """The same with the head as its own row builds it: a head that is whole, or reads its inputs in its own way."""
    head, tasks = network.model[-1], import_family("ultralytics.nn.tasks", "ultralytics")
    if isinstance(head.f, int) or not hasattr(tasks, "Index"):
        return None
    before = _before_head(network)
    with torch.no_grad():
        maps: list[Tensor] = copied(before).eval()(torch.zeros(1, network.yaml.get("channels", 3), _SIDE, _SIDE))
    picked = [[0, 1, "Index", [value.shape[1], index]] for index, value in enumerate(maps)]
    handed_on = [[-1, 1, "nn.Identity", []] for _ in range(head.i - 1 - len(picked))]
    _, count, name, arguments = network.yaml["head"][-1]
    return [
        [-1, 1, _COPY, [before]],
        *picked,
        *handed_on,
        [list(range(1, 1 + len(picked))), count, name, list(arguments)],
    ]


def _before_head(network: Any) -> nn.Module:
    """All layers but the head, which stay the network's own, and one that hands out what the head reads."""
    head = network.model[-1]
    gather: Any = nn.Identity()
    gather.i, gather.f, gather.type, gather.np = head.i, head.f, "torch.nn.modules.linear.Identity", 0
    before: Any = import_family("ultralytics.nn.tasks", "ultralytics").BaseModel()
    before.model = nn.Sequential(*network.model[:-1], gather)
    before.save = list(network.save)
    return before  # type: ignore[no-any-return]  # an attribute of Any


def _builds(network: Any, made: Configuration) -> bool:
    """Whether Ultralytics builds this network from the configuration: as many weights, and the same outputs."""
    try:
        twin: Any = type(network)(made, ch=made.get("channels", 3), nc=made.get("nc"), verbose=False)
        twin.load(copied(network), verbose=False)
        with torch.no_grad():
            image = torch.rand(1, made.get("channels", 3), _SIDE, _SIDE)
            theirs, ours = (tensors_of(model.eval()(image))[0] for model in (twin, copied(network)))
    except Exception:  # any way in which a row may not fit: another way is tried, or none
        return False
    sizes = [sorted(tuple(value.shape) for value in model.parameters()) for model in (network, twin)]
    same = len(ours) == len(theirs) and all(_close(one, two) for one, two in zip(ours, theirs, strict=True))
    return sizes[0] == sizes[1] and same


def _close(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-4, atol=1e-5)
