"""Names to models: one adapter per family says how to build it, feed it, and take a training loss from it."""

from __future__ import annotations

import abc
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effp_fx.errors import InputError, ModelNameError, RegistrationError
from effp_fx.inputs import Example, as_example, infer_example
from effp_fx.models.detection import Detection
from effp_fx.models.factory import load_factory
from effp_fx.models.spec import split_options


class Adapter(abc.ABC):
    """What effp_fx needs to know of a model family. Subclass it, then ``effp_fx.register_model(MyFamily())``.

    ``build``, ``knows`` and ``example`` must be written; the rest has a default that fits most families. No method
    may download anything or change the model it is given.
    """

    name: ClassVar[str]
    """The family's name in a model spec, ``name:...``."""

    @abc.abstractmethod
    def build(self, name: str, **options: Any) -> nn.Module:
        """Return the model called ``name`` with fresh weights, in eval mode; ModelNameError where it is unknown."""

    @abc.abstractmethod
    def knows(self, model: nn.Module) -> bool:
        """Say whether ``model`` is of this family, without importing a package that may be absent."""

    @abc.abstractmethod
    def example(self, model: nn.Module) -> Example:
        """Return inputs that ``model.eval()`` runs on, with the device and dtype of its parameters."""

    def train_example(self, model: nn.Module) -> Example | None:
        """Return inputs for ``model.train()``, targets included where forward wants them; None: those of eval."""
        return None

    def loss(self, model: nn.Module, outputs: Any) -> Tensor:
        """Return a scalar to call ``backward`` on, from the outputs in train mode.

        Scalars (a dict of losses) are summed; every other floating tensor gives the mean of its squares.
        """
        return mean_square_loss(outputs)

    def prepare(self, model: nn.Module) -> None:
        """Do what the family needs before it is traced; by default nothing."""
        return

    def rebind(self, model: nn.Module) -> None:
        """Set, in a compact model, sizes that only code beside ``forward`` reads; by default there are none.

        What ``forward`` reads is found and rebound by itself.
        """
        return

    def network_path(self, model: nn.Module) -> str:
        """Return the path of the submodule that computes; "" where the model itself does. For wrapper objects."""
        return ""

    def detection(self, model: nn.Module) -> Detection | None:
        """Say what the output of ``model.eval()`` means; None where it is no detector, or not one known that well."""
        return None

    def let_all_pass(self, model: nn.Module) -> None:
        """Lower, in a copy that is thrown away, the thresholds under which a random image would show no detection."""
        return


@dataclass(frozen=True)
class Built:
    """A model made from a spec, with the adapter of its family (None: no family knows it)."""

    model: nn.Module
    adapter: Adapter | None
    spec: str
    given: Example | None = None
    """The inputs that a ``module:factory`` returned beside its model."""

    def example(self) -> Example:
        """Return inputs for eval mode: the factory's own, else the adapter's, else a guess (InputError: none)."""
        return self.given or example_for(self.model)


_ADAPTERS: dict[str, Adapter] = {}


def register_model(adapter: Adapter, *, replace: bool = False) -> Adapter:
    """Teach a model family; of two that know the same model, the one registered last is asked first.

    Args:
        adapter: an instance of a subclass of ``Adapter``.
        replace: take the place of the family that has this name already.

    Raises:
        RegistrationError: it is no Adapter, or its name is taken or cannot stand before the colon of a spec.
    """
    if not isinstance(adapter, Adapter):
        raise RegistrationError(
            "a model adapter must be an instance of effp_fx.models.Adapter",
            seen=repr(adapter),
            mend="register_model(MyFamily()), with the parentheses" if isinstance(adapter, type) else None,
        )
    name = getattr(adapter, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise RegistrationError(
            "a model adapter needs a name that can stand before the colon of a spec",
            where=type(adapter).__qualname__,
            seen=repr(name),
            expected='an identifier, such as name = "mylab"',
        )
    if name in _ADAPTERS and not replace:
        raise RegistrationError(
            f"there is a model family {name!r} already",
            seen=type(_ADAPTERS[name]).__qualname__,
            mend="choose another name, or register_model(..., replace=True)",
        )
    _ADAPTERS.pop(name, None)  # to the end: asked first
    _ADAPTERS[name] = adapter
    return adapter


def names() -> list[str]:
    """Return the names of the families that are known, sorted."""
    return sorted(_ADAPTERS)


def adapter_for(model: nn.Module) -> Adapter | None:
    """Return the adapter whose family ``model`` is of; None where there is none. The last registered wins."""
    return next((adapter for adapter in reversed(_ADAPTERS.values()) if adapter.knows(model)), None)


def example_for(model: nn.Module) -> Example:
    """Return eval-mode inputs from the family's adapter, or inferred from the layers; InputError where neither can."""
    adapter = adapter_for(model)
    return adapter.example(model) if adapter else infer_example(model)


def build(spec: str) -> Built:
    """Build the model that ``spec`` names.

    ``family:name``, with builder options after a question mark: ``torchvision:retinanet_resnet50_fpn?norm=frozen&
    min_size=320``. A value is a bool, None, a number, a tuple of such (``64,128``) or else text. Any other prefix
    is a Python factory, ``package.module:factory`` or ``path/to/file.py:factory``, called with the options; it
    returns a module, or a pair of a module and its example inputs.

    Raises:
        ModelNameError: no such family, model, module or factory; near matches are named.
    """
    head, colon, rest = spec.partition(":")
    if not colon or not head or not rest:
        raise ModelNameError(
            f"{spec!r} is not a model spec",
            expected="family:name, package.module:factory or file.py:factory; families: " + ", ".join(names()),
            mend=f"write its family before it, for instance torchvision:{head}" if head else None,
        )
    if head not in _ADAPTERS:
        return _from_factory(spec)
    name, options = split_options(rest)
    adapter = _ADAPTERS[head]
    model = adapter.build(name, **options).eval()
    # A plain string that copying and pickling keep: a saved model then says how to build its dense one.
    model.effp_built_from = spec  # type: ignore[assignment]  # modules take any attribute
    return Built(model, adapter, spec)


def is_from(model: nn.Module, prefix: str) -> bool:
    """Say whether the class of ``model``, or a class it derives from, is defined under the package ``prefix``."""
    return any(f"{kind.__module__}.".startswith(prefix + ".") for kind in type(model).__mro__)


def reference_tensor(model: nn.Module) -> Tensor:
    """Return a floating parameter or buffer of the model, for its device and dtype; an empty float tensor if none."""
    tensors = (t for group in (model.parameters(), model.buffers()) for t in group)
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def image_channels(model: nn.Module) -> int:
    """Return the channels of the model's first 2-d convolution, in registration order: 3 where there is none."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def mean_square_loss(outputs: Any) -> Tensor:
    """Return the sum of the scalars and of the mean squares of the other floating tensors in ``outputs``.

    Raises:
        InputError: there is no floating tensor that a gradient could come from.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    terms = [t if t.ndim == 0 else t.square().mean() for t in tensors if t.requires_grad and t.numel()]
    if not terms:
        raise InputError("the train-mode outputs hold no floating tensor to make a loss of", seen=str(type(outputs)))
    return torch.stack([term.to(terms[0]) for term in terms]).sum()


def _from_factory(spec: str) -> Built:
    place, _, rest = spec.rpartition(":")
    factory_name, options = split_options(rest)
    factory = load_factory(place, factory_name, names())
    try:
        inspect.signature(factory).bind(**options)  # what goes wrong inside the factory is the user's to see
    except TypeError as error:
        raise ModelNameError("the factory cannot be called with these options", where=spec, seen=str(error)) from error
    except ValueError:  # some builtins have no signature to check
        pass
    made = factory(**options)
    model, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelNameError(
            f"{factory_name} did not return a torch.nn.Module", where=spec, seen=f"an object of {type(model)}"
        )
    return Built(model.eval(), adapter_for(model), spec, None if given is None else as_example(given))
