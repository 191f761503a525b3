"""Model specs: how a name and its options are written, and the errors that name what was nearly meant."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from effp_fx.errors import ModelNameError

Option = bool | int | float | str | tuple[Any, ...] | None
_WORDS: dict[str, Option] = {"true": True, "false": False, "none": None}


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
        mend=nearest(name, known) or "the first of them: " + ", ".join(sorted(known)[:5]),
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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the question "did you mean ...?" with up to three names like ``name``; None where none is like it."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return "did you mean " + " or ".join(near) + "?" if near else None
