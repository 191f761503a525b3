"""Names to models: one adapter per family says how to build it, feed it, and take a training loss from it."""

from __future__ import annotations

import abc
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effp_fx.errors import InputError, ModelNameError, RegistrationError
from effp_fx.inputs import Example, as_example, infer_example

Option = bool | int | float | str | tuple[Any, ...] | None
_WORDS: dict[str, Option] = {"true": True, "false": False, "none": None}


class Adapter(abc.ABC):
    """What effp_fx needs to know of a model family. Subclass it, then ``effp_fx.register_model(MyFamily())``.

    ``build``, ``knows`` and ``example`` must be written; the rest has a default that fits most families. No method
    may download anything or change the model it is given.
    """

    name: ClassVar[str]
    """The family's name in a model spec, ``name:...``."""
    size_attributes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Class name -> names of its integer attributes that hold channel counts: hints for rebinding them."""

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

    def network_path(self, model: nn.Module) -> str:
        """Return the path of the submodule that computes; "" where the model itself does. For wrapper objects."""
        return ""


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
            mend=_suggest(spec, names()),
        )
    if head not in _ADAPTERS:
        return _from_factory(spec)
    name, options = split_options(rest)
    adapter = _ADAPTERS[head]
    return Built(adapter.build(name, **options).eval(), adapter, spec)


def split_options(text: str) -> tuple[str, dict[str, Option]]:
    """Split ``name?key=value&key=value`` into the name and the options, values read as Python scalars or tuples.

    Raises:
        ModelNameError: an option without ``=``, without a name, or given twice.
    """
    name, _, query = text.partition("?")
    options: dict[str, Option] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise ModelNameError(f"cannot read the option {item!r}", where=text, expected="name?key=value&key=value")
        options[key] = _read(value)
    return name, options


def unknown_name(family: str, name: str, known: Iterable[str]) -> ModelNameError:
    """Return (not raise) the error for a name that a family does not have, with near matches."""
    known = list(known)
    return ModelNameError(
        f"{family} has no model {name!r}",
        where=f"{family}:{name}",
        expected=f"one of its {len(known)} names",
        mend=_suggest(name, known) or "the first of them: " + ", ".join(sorted(known)[:5]),
    )


def wrong_options(family: str, name: str, error: Exception) -> ModelNameError:
    """Return (not raise) the error for options that a builder refused."""
    return ModelNameError(f"{family}:{name} does not take these options", seen=f"{type(error).__name__}: {error}")


def import_family(package: str, extra: str) -> Any:
    """Import the package of a family; ModelNameError with the line that installs it where it is absent."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise
        raise ModelNameError(f"{package} is not installed", mend=f'pip install "effp-fx[{extra}]"') from error


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
    module = _load_file(place, spec) if place.endswith(".py") else _load_module(place, spec)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ModelNameError(
            f"{place} has no factory {factory_name!r}", where=spec, mend=_suggest(factory_name, public)
        )
    made = factory(**options)
    model, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelNameError(
            f"{factory_name} did not return a torch.nn.Module", where=spec, seen=f"an object of {type(model)}"
        )
    return Built(model.eval(), adapter_for(model), spec, None if given is None else as_example(given))


def _load_module(place: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
        raise ModelNameError(
            f"{place!r} is neither a model family nor a Python module",
            where=spec,
            expected="a family (" + ", ".join(names()) + "), an importable module, or a path that ends in .py",
            mend=_suggest(place, names()),
        ) from error


def _load_file(place: str, spec: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise ModelNameError(f"there is no file {place}", where=spec)
    name = f"effp_fx_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # holds for every path that ends in .py
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # before it runs, so that its classes can be pickled and dataclasses resolved
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _read(text: str) -> Option:
    if "," in text:
        return tuple(_read(part) for part in text.split(",") if part)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _suggest(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return "did you mean " + " or ".join(near) + "?" if near else None
