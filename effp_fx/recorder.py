"""The recorder: a dispatch mode that writes a node for every ATen op of a run, with its module and source line."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx.call_site import Site, user_line
from effp_fx.graph import TensorInfo
from effp_fx.op_mode import ALIASES, OpMode, mapped, op_tensors, op_text
from effp_fx.ops.shapes import depends_on_values
from effp_fx.outlines import Outlines, Values, ValuesNeeded


class Recorder(OpMode):
    """Writes a node for every op that returns or changes a tensor."""

    def __init__(self, named: dict[str, Tensor], inputs: list[Tensor], site: Site, values: Values = Values.ALL) -> None:
        super().__init__(site)
        self.values = values
        self.halted = False
        """Whether values were needed that are not computed. Said here as well: a model may catch the exception."""
        self._outlines = Outlines()
        self._unknown: set[int] = set()
        """Storages whose values are not what they would be."""
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.reads: list[str] = []
        self._named = {id(tensor): name for name, tensor in reversed(named.items())}
        self._memory = {_view_of(tensor): name for name, tensor in reversed(named.items()) if tensor.numel()}
        self._named_nodes: dict[str, fx.Node] = {}
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}
        self._storages = 0
        for index, tensor in enumerate(inputs):
            node = self.graph.placeholder(f"input_{index}")
            self._describe(node, tensor, self._new_storage())
            self._enter(tensor, node)

    @property
    def used(self) -> tuple[str, ...]:
        """The parameters and buffers that the run read, in that order."""
        return tuple(self._named_nodes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op_text(func) in ALIASES:
            return self._fresh(func, args, kwargs)
        source = user_line()
        found: list[tuple[Tensor, fx.Node]] = []

        def to_node(value: Tensor) -> fx.Node:
            node = self.node_of(value, source)
            found.append((value, node))
            return node

        node_args, node_kwargs = mapped(args, to_node), mapped(kwargs, to_node)
        storages = {_address(value): node for value, node in reversed(found)}
        output, unknown = None, any(node.meta["storage"] in self._unknown for _, node in found)
        if self.values is not Values.ALL:
            output = self._outlines.result(func, args, kwargs)
        if output is None:
            if unknown and depends_on_values(func, args):
                self._need_values()
            output = func(*args, **kwargs)
        else:
            unknown = True
            if output is not args[0]:
                storages = {}  # outlines share their memory, and stand for tensors that do not
        outputs = op_tensors(output)
        if not outputs and not func._schema.is_mutable:
            if unknown:
                self._need_values()
            self.reads.append(f"{op_text(func)} in {self.site.module[0] or 'the model'} ({source})")
            return output
        node_kwargs = {key: value for key, value in node_kwargs.items() if not isinstance(value, torch.Generator)}
        node = self._call(func, node_args, node_kwargs)
        self._annotate(node, source)
        self._bind(node, output, storages, source)
        if unknown:
            written = [item.meta["storage"] for _, item in found[:1]] if func._schema.is_mutable else []
            made = node.meta["storage"]
            self._unknown.update([*written, *(made if isinstance(made, list) else [made])])
        return output

    def _need_values(self) -> None:
        if self.values is Values.UNTIL_READ:
            self.halted = True
            raise ValuesNeeded

    def node_of(self, tensor: Tensor, source: str = "") -> fx.Node:
        """The node of a tensor; one that no op made is a parameter, a buffer or a constant, first read at `source`."""
        known = self._nodes.get(id(tensor))
        if known is not None and known[0]() is tensor:  # an id is given again to another tensor
            return known[1]
        name = self._named.get(id(tensor))
        if name is None and tensor.numel():
            name = self._memory.get(_view_of(tensor))
        if name is not None and name in self._named_nodes:
            return self._named_nodes[name]
        if name is None:
            name = self._constant(tensor.detach())
        node = self._read(name, tensor, source)
        if name in self.constants:
            self._enter(tensor, node)
        else:
            self._named_nodes[name] = node
        return node

    def _constant(self, tensor: Tensor) -> str:
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = tensor
        return name

    def _read(self, name: str, tensor: Tensor, source: str) -> fx.Node:
        node = self.graph.create_node("get_attr", name)
        if name in self.constants and tensor.numel() == 1:
            node.meta["number"] = tensor.item()
        self._annotate(node, source)
        self._describe(node, tensor, self._new_storage())
        return node

    def _fresh(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A literal, `torch.tensor([1, 2])`: a clone of a constant, so that writing to it leaves the constant alone."""
        output: Tensor = func(*args, **kwargs)
        source = user_line()
        read = self._read(self._constant(output.detach().clone()), output, source)
        node = self.graph.call_function(torch.ops.aten.clone.default, (read,))
        self._annotate(node, source)
        self._describe(node, output, self._new_storage())
        self._enter(output, node)
        return output

    def _call(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """A node for an op. Its arguments are set later: `create_node` looks through them for symbols, which takes as
        long as all else that it does."""
        node = self.graph.create_node("call_function", target, name=_name(target))
        node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def _enter(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = (weakref.ref(tensor), node)

    def _annotate(self, node: fx.Node, source: str) -> None:
        node.meta["module"], node.meta["module_type"] = self.site.module
        node.meta["source"] = source

    def _bind(self, node: fx.Node, output: Any, storages: dict[int, fx.Node], source: str) -> None:
        if isinstance(output, Tensor):
            self._describe(node, output, self._storage(output, storages))
            self._enter(output, node)
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
            part = self._call(_getitem, (node, index), {})
            self._annotate(part, source)
            self._describe(part, item, self._storage(item, storages))
            self._enter(item, part)
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


def _getitem(values: Any, index: int) -> Any:
    return values[index]


@cache
def _name(func: Any) -> str:
    """The name of a function's nodes, `conv2d_default`; worked out once, as torch does for each node anew."""
    if func is _getitem:
        return func.__name__
    return op_text(func).partition(".")[2].replace(".", "_").lower()


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _view_of(tensor: Tensor) -> tuple[object, ...]:
    """The same for two tensors that are the same view of the same memory."""
    return tensor.untyped_storage().data_ptr(), tensor.shape, tensor.stride(), tensor.storage_offset()
