"""The recorder: a dispatch mode that writes a node for every ATen op of a run, with its module and source line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from effp_fx.graph import TensorInfo

_HERE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
RUNNER = "run_recorded"
"""The function under which a model runs: no user's code lies beyond it."""
_DROPOUT = {"aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout"}
_ATTENTION = "aten.scaled_dot_product_attention"
_ALIASES = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default"}


@dataclass(frozen=True)
class Attempt:
    """The op that was called last, whether or not it came back."""

    target: Any
    args: Any
    kwargs: Any
    module: str
    source: str


Watch = Callable[[fx.Node, list[Tensor], list[Tensor]], list[Tensor] | None]
"""Called after each op with its node, results and inputs. What it returns takes the place of the results; what it
raises ends the run."""


@dataclass
class Site:
    """Where in the module tree the recorder stands."""

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


def user_line() -> str:
    """The innermost line outside torch and this package: the user's own code."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE, "<")):
            return f"{Path(path).name}:{frame.f_lineno}, in {frame.f_code.co_name}"
        if frame.f_code.co_name == RUNNER and path.startswith(_HERE):
            return ""
        frame = frame.f_back  # type: ignore[assignment]  # typeshed: f_back is None only at the bottom, the loop's end
    return ""


class Recorder(SchemaCheckMode):
    """Writes a node for every op that returns or changes a tensor.

    Torch keeps three slots at the pre-dispatch key and admits only its own three modes to them. We take the place of
    the schema checker, the one that nothing else uses, and none of its behaviour.
    """

    def __init__(self, named: dict[str, Tensor], inputs: list[Tensor], site: Site, watch: Watch | None = None) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # no slot of torch's own
        self.graph = fx.Graph()
        self.site = site
        self.watch = watch
        self.attempt: Attempt | None = None
        self.constants: dict[str, Tensor] = {}
        self.reads: list[str] = []
        self._named = {id(tensor): name for name, tensor in reversed(named.items())}
        self._memory = {
            (tensor.untyped_storage().data_ptr(), tensor.shape, tensor.stride(), tensor.storage_offset()): name
            for name, tensor in reversed(named.items())
            if tensor.numel()
        }
        self._named_nodes: dict[str, fx.Node] = {}
        self._nodes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._storages = 0
        for index, tensor in enumerate(inputs):
            node = self.graph.placeholder(f"input_{index}")
            self._describe(node, tensor, self._new_storage())
            self._nodes[tensor] = node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found: list[fx.Node] = []

        def to_node(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            node = self.node_of(value)
            found.append(node)
            return node

        name = str(func)
        if name in _ALIASES:
            return self._fresh(func, args, kwargs)
        node_args, node_kwargs = pytree.tree_map((to_node), (args, kwargs))
        storages = {_address(value): node for value, node in zip(tensors_in((args, kwargs)), found, strict=True)}
        self.attempt = Attempt(func, node_args, node_kwargs, self.site.module[0], user_line())
        output = func(*args, **kwargs) if self.watch is None else _without_dropout(func, name, args, kwargs)
        outputs = tensors_in(output)
        if not outputs and not func._schema.is_mutable:
            self.reads.append(f"{name} in {self.site.module[0] or 'the model'} ({user_line()})")
            return output
        node_kwargs = {key: value for key, value in node_kwargs.items() if not isinstance(value, torch.Generator)}
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._annotate(node)
        self._bind(node, output, storages)
        if self.watch is not None:
            replaced = self.watch(node, outputs, tensors_in((args, kwargs)))
            if replaced is not None:
                return self._replace(node, output, replaced, storages)
        return output

    def _replace(self, node: fx.Node, output: Any, replaced: list[Tensor], storages: dict[int, fx.Node]) -> Any:
        """Hand the model other results than the op's own."""
        output = replaced[0] if isinstance(output, Tensor) else tuple(replaced)
        self._bind(node, output, storages)
        return output

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor; one that no op made is a parameter, a buffer or a constant."""
        node = self._nodes.get(tensor)
        if node is not None:
            return node  # type: ignore[no-any-return]  # the dictionary is untyped
        name = self._named.get(id(tensor))
        if name is None and tensor.numel():
            key = (tensor.untyped_storage().data_ptr(), tensor.shape, tensor.stride(), tensor.storage_offset())
            name = self._memory.get(key)
        if name is not None and name in self._named_nodes:
            return self._named_nodes[name]
        if name is None:
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor.detach()
        node = self.graph.get_attr(name)
        self._annotate(node)
        self._describe(node, tensor, self._new_storage())
        if name.startswith("_constant_"):
            self._nodes[tensor] = node
        else:
            self._named_nodes[name] = node
        return node

    def _fresh(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A literal, `torch.tensor([1, 2])`: a clone of a constant, so that writing to it leaves the constant alone."""
        output: Tensor = func(*args, **kwargs)
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = output.detach().clone()
        read = self.graph.get_attr(name)
        self._annotate(read)
        self._describe(read, output, self._new_storage())
        node = self.graph.call_function(torch.ops.aten.clone.default, (read,))
        self._annotate(node)
        self._describe(node, output, self._new_storage())
        self._nodes[output] = node
        if self.watch is not None:
            self.watch(node, [output], [])
        return output

    def _annotate(self, node: fx.Node) -> None:
        node.meta["module"], node.meta["module_type"] = self.site.module
        node.meta["source"] = user_line()

    def _bind(self, node: fx.Node, output: Any, storages: dict[int, fx.Node]) -> None:
        if isinstance(output, Tensor):
            self._describe(node, output, self._storage(output, storages))
            self._nodes[output] = node
            return
        if output is None:
            node.meta["val"], node.meta["storage"] = None, None
            return
        values: list[TensorInfo | None] = []
        numbers: list[int | None] = []
        for index, item in enumerate(output):
            if not isinstance(item, Tensor):
                values.append(None)
                numbers.append(None)
                continue
            part = self.graph.call_function(_getitem, (node, index))
            self._annotate(part)
            self._describe(part, item, self._storage(item, storages))
            self._nodes[item] = part
            values.append(part.meta["val"])
            numbers.append(part.meta["storage"])
        node.meta["val"], node.meta["storage"] = values, numbers

    def _storage(self, tensor: Tensor, storages: dict[int, fx.Node]) -> int:
        source = storages.get(_address(tensor))
        if source is not None and isinstance(source.meta["storage"], int):
            return source.meta["storage"]
        return self._new_storage()

    def _new_storage(self) -> int:
        self._storages += 1
        return self._storages

    @staticmethod
    def _describe(node: fx.Node, tensor: Tensor, storage: int) -> None:
        node.meta["val"] = TensorInfo(tuple(tensor.shape), tensor.dtype)
        node.meta["storage"] = storage


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


def _getitem(values: Any, index: int) -> Any:
    return values[index]


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def user_frame(error: BaseException) -> str | None:
    """The innermost line outside torch and this package at which an error passed."""
    trace, place = error.__traceback__, None
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE, "<")):
            place = f"{Path(path).name}:{trace.tb_lineno}, in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return place


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in a pytree, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
