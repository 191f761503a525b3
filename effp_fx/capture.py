"""Records what a model computes on example inputs as one FX graph of ATen ops; the only file that traces.

The ops are seen before autograd and before composite ops are taken apart (`conv2d`, `linear`, `batch_norm`, `cat`), by
a dispatch mode of our own. That is the level at which `make_fx(pre_dispatch=True)` records; ours keeps the module and
the source line of every op, writes the graph as the model runs, and computes no more than the graph depends on.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module

from effp_fx.call_site import Site, user_frame
from effp_fx.errors import CaptureError, EffpError
from effp_fx.graph import TensorInfo
from effp_fx.inputs import Example, check_example, describe_mismatch, map_tensors, repeat_batch
from effp_fx.model_checks import check_model
from effp_fx.module_copy import copied
from effp_fx.op_mode import OpMode, below_autograd
from effp_fx.outlines import Values, ValuesNeeded
from effp_fx.recorder import Recorder
from effp_fx.watcher import Step, Watch, Watcher

FAILED_ON_INPUTS = "failed on the example inputs"
"""What an error says whose cause may be the inputs as well as the model."""


@dataclass(frozen=True)
class Capture:
    """One recorded forward pass."""

    graph: fx.Graph
    """Placeholders: the example's tensors in pytree order. Output: the tuple of the tensors in the model's output."""
    attributes: Mapping[str, Tensor]
    """What its `get_attr` nodes read: parameters and buffers of the model, and constants of the run."""
    train: bool
    out_spec: pytree.TreeSpec
    example: Example
    """What it was recorded on."""
    used: frozenset[str] = frozenset()
    """Parameters and buffers that the pass read."""
    reads: tuple[str, ...] = ()
    """Places where Python read a value out of a tensor: what the graph computes there is fixed to the example."""
    values: Values = Values.ALL
    """Which were computed. With `NONE` the ops that follow from values are not those of a run with them."""

    @property
    def reads_values(self) -> bool:
        """Whether the ops that were recorded may be others than those of a run on other values."""
        return self.values is Values.ALL or (self.values is Values.UNTIL_READ and bool(self.reads))

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The graph with what it reads, to be run: code is written for it when it is first asked for."""
        return fx.GraphModule(dict(self.attributes), self.graph, "Captured")


@dataclass(frozen=True)
class Recording:
    """A run that may have failed on the way."""

    last: Step | None
    """The op that was called last, whether or not it came back."""
    error: Exception | None
    output: Any = None


def tensors_of(output: Any) -> tuple[list[Tensor], pytree.TreeSpec]:
    """The tensors in a model's output, in pytree order, and the tree. Fields of objects that pytree takes for leaves
    (data classes, `SimpleNamespace`) are read as dictionaries."""
    leaves, spec = pytree.tree_flatten(output)
    found: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)):
            found += [value for value in pytree.tree_leaves(vars(leaf)) if isinstance(value, Tensor)]
    return found, spec


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters and nothing else: running it leaves the user's module as it was."""
    try:
        return copied(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:  # deepcopy runs the user's own __deepcopy__ and __reduce__: anything can come out
        raise CaptureError(
            f"{type(model).__name__} cannot be copied",
            seen=f"{type(error).__name__}: {error}",
            expected="a module that copy.deepcopy accepts, so that the original stays untouched",
            mend="detach tensors kept as plain attributes (self.x = x.detach()), or drop handles such as open files",
        ) from error


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


def capture(model: nn.Module, example: Example, *, train: bool = False, values: Values = Values.ALL) -> Capture:
    """Record `model(*example.args, **example.kwargs)` in eval mode, or in train mode.

    Most of the time that a run takes goes into values; `values` says whether the graph may do without. Where Python
    reads one, `UNTIL_READ` means that the model runs again with all.
    The model is left as it was: a private copy that shares its parameters runs, without gradients. Raises CaptureError
    with the model's own error where forward fails, InputError where the inputs cannot fit.
    """
    check_model(model)
    check_example(example, model)
    if values is Values.UNTIL_READ:
        with undisturbed(), suppress(Exception):  # whatever goes wrong without values does, or does not, with them
            torch.manual_seed(0)
            return _run(private_copy(model).train(train), example, train, values)
        values = Values.ALL
    runner = private_copy(model).train(train)
    with undisturbed():
        torch.manual_seed(0)
        try:
            return _run(runner, example, train, values)
        except ValueError as error:
            if not train or "more than 1 value per channel" not in str(error):
                raise _failed(model, example, error) from error
            return _run(private_copy(model).train(train), repeat_batch(example, 2), train, values)
        except EffpError:
            raise
        except Exception as error:  # the user's forward may raise anything
            raise _failed(model, example, error) from error


def _failed(model: nn.Module, example: Example, error: Exception) -> CaptureError:
    given = ", ".join(str(TensorInfo(tuple(t.shape), t.dtype)) for t in example.tensors())
    first = str(error).splitlines()[0] if str(error) else ""
    mismatch = describe_mismatch(example, model)
    return CaptureError(
        f"{type(model).__name__} {FAILED_ON_INPUTS}",
        where=user_frame(error),
        seen=f"{type(error).__name__}: {first} (inputs: {given}{'; ' + mismatch if mismatch else ''})",
        mend="check that model(*example_inputs) runs; shape, dtype and device must be those the model was built for",
    )


def replay(
    model: nn.Module, example: Example, watch: Watch, *, train: bool = False, shapes_only: bool = False
) -> Recording:
    """Run a model that belongs to the caller for what `watch` sees of its ops; it may be changed by running, the inputs
    are not.

    With `shapes_only` products are not computed, see `outlines`.

    An error in the run is returned, not raised.
    """
    model.train(train)
    with undisturbed():
        torch.manual_seed(0)
        watcher = Watcher(_site(model), watch, shapes_only=shapes_only)
        try:
            output = run_recorded(watcher, model, copy.deepcopy(example))
        except Exception as error:  # the user's forward may raise anything
            return Recording(watcher.last, error)
        return Recording(watcher.last, None, output)


def _site(model: nn.Module) -> Site:
    return Site({id(module): name for name, module in model.named_modules()})


def run_recorded(mode: OpMode, runner: nn.Module, example: Example) -> Any:
    """Run a model under a dispatch mode, without gradients; the name is where a search for the user's own line ends."""
    with ExitStack() as stack:
        stack.enter_context(below_autograd())
        for register, hook in (
            (nn_module.register_module_forward_pre_hook, mode.site.enter),
            (partial(nn_module.register_module_forward_hook, always_call=True), mode.site.leave),
        ):
            stack.callback(register(hook).remove)
        stack.enter_context(mode)
        return runner(*example.args, **example.kwargs)


def _run(runner: nn.Module, example: Example, train: bool, values: Values) -> Capture:
    given, example = example, map_tensors(lambda tensor: tensor.detach().clone(), example)
    buffers = dict(runner.named_buffers())
    named = {**dict(runner.named_parameters()), **buffers}
    recorder = Recorder(named, example.tensors(), _site(runner), values)
    # The graph starts from the buffers as they were: the run may write to them, and so will the graph.
    named |= {name: buffer.detach().clone() for name, buffer in buffers.items()}
    output = run_recorded(recorder, runner, example)
    if recorder.halted:
        raise ValuesNeeded
    tensors, spec = tensors_of(output)
    if not tensors:
        raise CaptureError(
            "the model's output holds no tensor", seen=type(output).__name__, expected="tensors, nested as you like"
        )
    recorder.graph.output(tuple(recorder.node_of(tensor) for tensor in tensors))
    attributes = {**{name: named[name] for name in recorder.used}, **recorder.constants}
    used, reads = frozenset(recorder.used), tuple(recorder.reads)
    return Capture(recorder.graph, attributes, train, spec, given, used, reads, values)
