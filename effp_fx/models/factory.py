"""Models from the user's own code: `package.module:factory` and `path/to/file.py:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from effp_fx.errors import ModelNameError
from effp_fx.models.spec import nearest


def load_factory(place: str, name: str, families: Iterable[str]) -> Callable[..., Any]:
    """Return the callable ``name`` of a module or of a Python file, which is imported, so its code runs.

    Args:
        place: an importable module, or a path that ends in ``.py``.
        name: of a class or function in it.
        families: names that ``place`` may have been meant for, for the message.

    Raises:
        ModelNameError: there is no such module, file or callable.
    """
    module = _load_file(place) if place.endswith(".py") else _load_module(place, list(families))
    factory = getattr(module, name, None)
    if callable(factory):
        return factory  # type: ignore[no-any-return]
    public = [key for key in vars(module) if not key.startswith("_")]
    raise ModelNameError(f"{place} has no factory {name!r}", where=f"{place}:{name}", mend=nearest(name, public))


def _load_module(place: str, families: list[str]) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
        raise ModelNameError(
            f"{place!r} is neither a model family nor a Python module",
            expected="a family (" + ", ".join(families) + "), an importable module, or a path that ends in .py",
            mend=nearest(place, families),
        ) from error


def _load_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise ModelNameError(f"there is no file {place}")
    version = f"{path}:{path.stat().st_mtime_ns}".encode()
    name = f"effp_fx_user_{path.stem}_{zlib.crc32(version):08x}"
    if name in sys.modules:  # loading it twice would make its classes twice, and they could not be pickled
        return sys.modules[name]
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
