"""Records what a model computes on example inputs as one FX graph of ATen ops; the only file that traces.

The ops are seen before autograd and before composite ops are taken apart (`conv2d`, `linear`, `batch_norm`, `cat`), by a
dispatch mode of our own at the pre-dispatch key. That is the level at which `make_fx(pre_dispatch=True)` records; ours
keeps the module and the source line of every op and costs a few per cent of the forward pass instead of several times it.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from effp_fx.errors import CaptureError, EffpError, InputError
from effp_fx.graph import TensorInfo
from effp_fx.inputs import Example, map_tensors, repeat_batch

_HERE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
_ALIASES = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default"}


@dataclass(frozen=True)
class Capture:
    """One recorded forward pass."""

    graph_module: fx.GraphModule
    """Placeholders: the example's tensors in pytree order. Output: the tuple of the tensors in the model's output."""
    train: bool
    out_spec: pytree.TreeSpec
    used: frozenset[str] = frozenset()
    """Parameters and buffers that the pass read."""
    reads: tuple[str, ...] = ()
    """Places where Python read a value out of a tensor: what the graph computes there is fixed to the example."""


@dataclass(frozen=True)
class Attempt:
    """The op that was called last, whether or not it came back."""

    target: Any
    args: Any
    kwargs: Any
    module: str
    source: str


Watch = Callable[[fx.Node, list[Tensor], list[Tensor]], list[Tensor] | None]
"""Called after each op with its node, results and inputs. What it returns takes the place of the results; what it raises
ends the run."""


@dataclass(frozen=True)
class Recording:
    """A run that may have failed on the way."""

    attempt: Attempt | None
    error: Exception | None
    output: Any = None


@dataclass
class _Site:
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


def _source() -> str:
    """The innermost line outside torch and this package: the user's own code."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE, "<")):
            return f"{Path(path).name}:{frame.f_lineno}, in {frame.f_code.co_name}"
        if path == __file__ and frame.f_code.co_name == "_record":
            return ""
        frame = frame.f_back  # type: ignore[assignment]  # typeshed: f_back is None only at the bottom, the loop's end
    return ""


class _Recorder(SchemaCheckMode):
    """Writes a node for every op that returns or changes a tensor.

    Torch keeps three slots at the pre-dispatch key and admits only its own three modes to them. We take the place of the
    schema checker, the one that nothing else uses, and none of its behaviour.
    """

    def __init__(self, named: dict[str, Tensor], inputs: list[Tensor], site: _Site, watch: Watch | None = None) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]  # not torch's typed API
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
        storages = {_address(value): node for value, node in zip(_tensors((args, kwargs)), found, strict=True)}
        self.attempt = Attempt(func, node_args, node_kwargs, self.site.module[0], _source())
        output = func(*args, **kwargs)
        outputs = _tensors(output)
        if not outputs and not func._schema.is_mutable:
            self.reads.append(f"{name} in {self.site.module[0] or 'the model'} ({_source()})")
            return output
        node_kwargs = {key: value for key, value in node_kwargs.items() if not isinstance(value, torch.Generator)}
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._annotate(node)
        self._bind(node, output, storages)
        if self.watch is not None:
            replaced = self.watch(node, outputs, _tensors((args, kwargs)))
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
        """A literal (`torch.tensor([1, 2])`): a clone of a constant, so that writing to it leaves the constant alone."""
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
        node.meta["source"] = _source()

    def _bind(self, node: fx.Node, output: Any, storages: dict[int, fx.Node]) -> None:
        if isinstance(output, Tensor):
            self._describe(node, output, self._storage(output, storages))
            self._nodes[output] = node
            return
        if output is None:
            node.meta["val"], node.meta["storage"] = None, None
            return
        values, numbers = [], []
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


def _getitem(values: Any, index: int) -> Any:
    return values[index]


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def tensors_of(output: Any) -> tuple[list[Tensor], pytree.TreeSpec]:
    """The tensors in a model's output, in pytree order, and the tree. Fields of objects that pytree takes for leaves
    (data classes, `SimpleNamespace`) are read as dictionaries."""
    leaves, spec = pytree.tree_flatten(output)
    found: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)):
            found += [value for value in _tensors(vars(leaf)) if isinstance(value, Tensor)]
    return found, spec


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters and nothing else: running it leaves the user's module as it was."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # deepcopy runs the user's own __deepcopy__ and __reduce__: anything can come out
        raise CaptureError(
            f"{type(model).__name__} cannot be copied",
            seen=f"{type(error).__name__}: {error}",
            expected="a module that copy.deepcopy accepts, so that the original stays untouched",
            mend="detach tensors kept as plain attributes (self.x = x.detach()), or drop handles such as open files",
        ) from error


def check_model(model: Any) -> None:
    """Raise CaptureError for what cannot be pruned at all, before anything is run."""
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", seen=type(model).__name__, expected="a torch.nn.Module")
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError("a scripted module", where=where, mend="hand over the eager module it was scripted from")
        if ".quantized" in type(module).__module__ or type(module).__module__.startswith("torch.ao.nn.quantiz"):
            raise CaptureError("a quantised module", where=where, mend="prune the float model first, quantise after that")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise CaptureError("a model wrapped for several devices", where=where, mend="hand over model.module")
        if isinstance(module, torch._dynamo.OptimizedModule):
            raise CaptureError("a compiled module", where=where, mend="hand over the module before torch.compile (model._orig_mod)")
    named = named_tensors(model)
    for name, tensor in named.items():
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            raise CaptureError("a lazy parameter without a shape", where=name, mend="run the model once on real inputs")
        if tensor.is_meta:
            raise CaptureError("a parameter on the meta device, without values", where=name, mend="model.to_empty(...) and load weights")
    if not any(True for _ in model.parameters()):
        raise CaptureError("the model has no parameters", seen=type(model).__name__, expected="a network with layers to prune")


def check_example(model: nn.Module, example: Example) -> None:
    """Raise InputError for inputs that cannot be right, in words better than a kernel's."""
    tensors = _tensors((example.args, example.kwargs))
    if not tensors:
        raise InputError("no tensor in the example inputs", seen=repr(example)[:120], expected="the arguments of model(...)")
    device = next(model.parameters()).device
    for tensor in tensors:
        if tensor.numel() == 0:
            raise InputError("an example input is empty", seen=f"shape {list(tensor.shape)}", expected="a batch of at least 1")
        if tensor.device.type != device.type:
            raise InputError(
                "example inputs and model are on different devices",
                seen=f"input on {tensor.device}, model on {device}",
                mend=f"example.to('{device}')",
            )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every random generator, warning filter and backend switch as it was."""
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_rng_state(state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def capture(model: nn.Module, example: Example, *, train: bool = False) -> Capture:
    """Record `model(*example.args, **example.kwargs)` in eval mode, or in train mode.

    The model is left as it was: a private copy that shares its parameters runs, without gradients. Raises CaptureError
    with the model's own error where forward fails, InputError where the inputs cannot fit.
    """
    check_model(model)
    check_example(model, example)
    runner = private_copy(model).train(train)
    with undisturbed():
        torch.manual_seed(0)
        try:
            return _run(runner, example, train)
        except ValueError as error:
            if not train or "more than 1 value per channel" not in str(error):
                raise _failed(model, example, error) from error
            return _run(private_copy(model).train(train), repeat_batch(example, 2), train)
        except EffpError:
            raise
        except Exception as error:  # the user's forward may raise anything
            raise _failed(model, example, error) from error


def _failed(model: nn.Module, example: Example, error: Exception) -> CaptureError:
    given = ", ".join(str(TensorInfo(tuple(t.shape), t.dtype)) for t in _tensors((example.args, example.kwargs)))
    return CaptureError(
        f"{type(model).__name__} failed on the example inputs",
        where=_frame_of(error),
        seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (inputs: {given})",
        mend="check that model(*example_inputs) runs; shape, dtype and device must be those the model was built for",
    )


def _frame_of(error: BaseException) -> str | None:
    trace, place = error.__traceback__, None
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE, "<")):
            place = f"{Path(path).name}:{trace.tb_lineno}, in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return place


def replay(model: nn.Module, example: Example, watch: Watch, *, train: bool = False) -> Recording:
    """Run a model that belongs to the caller under the recorder, for what `watch` sees; it may be changed by running.

    An error in the run is returned, not raised.
    """
    model.train(train)
    with undisturbed():
        torch.manual_seed(0)
        recorder, _ = _recorder(model, example, watch)
        try:
            return Recording(recorder.attempt, None, _record(recorder, model, example))
        except Exception as error:  # the user's forward may raise anything
            return Recording(recorder.attempt, error)


def _recorder(runner: nn.Module, example: Example, watch: Watch | None = None) -> tuple[_Recorder, dict[str, Tensor]]:
    named = named_tensors(runner)
    site = _Site({id(module): name for name, module in runner.named_modules()})
    return _Recorder(named, _tensors((example.args, example.kwargs)), site, watch), named


def _record(recorder: _Recorder, runner: nn.Module, example: Example) -> Any:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for register, hook in (
            (nn_module.register_module_forward_pre_hook, recorder.site.enter),
            (partial(nn_module.register_module_forward_hook, always_call=True), recorder.site.leave),
        ):
            stack.callback(register(hook).remove)
        stack.enter_context(enable_python_dispatcher())
        stack.enter_context(recorder)
        return runner(*example.args, **example.kwargs)


def _run(runner: nn.Module, example: Example, train: bool) -> Capture:
    example = map_tensors(lambda tensor: tensor.detach().clone(), example)
    recorder, named = _recorder(runner, example)
    output = _record(recorder, runner, example)
    tensors, spec = tensors_of(output)
    if not tensors:
        raise CaptureError("the model's output holds no tensor", seen=type(output).__name__, expected="tensors, nested as you like")
    recorder.graph.output(tuple(recorder.node_of(tensor) for tensor in tensors))
    return Capture(_module(recorder, named), train, spec, frozenset(recorder._named_nodes), tuple(recorder.reads))


def _module(recorder: _Recorder, named: dict[str, Tensor]) -> fx.GraphModule:
    attributes: dict[str, Any] = {**{name: named[name] for name in recorder._named_nodes}, **recorder.constants}
    return fx.GraphModule(attributes, recorder.graph, "Captured")
