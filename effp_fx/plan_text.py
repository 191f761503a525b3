"""The JSON form of a plan: written so that equal plans give equal text, read with every value checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, NoReturn

from effp_fx import index_ranges
from effp_fx.errors import FileFormatError

FORMAT = "effp_fx plan"
VERSION = 1
_MEND = "take the plan as effp_fx wrote it, or make a new one with effp_fx.prune"
_SECTIONS = ("tensors", "attributes", "groups", "summary")
# Larger than any dimension that holds channels; keeps a damaged number from being spelled out into memory.
_LARGEST_SIZE = 2**31 - 1

Shape = tuple[int, ...]
Indices = tuple[int, ...]
# What a size attribute may hold: 64, (64,), [16, 16], [(3, 3), (5, 5)].
Size = int | tuple["Size", ...] | list["Size"]


def write(sections: Mapping[str, Any]) -> str:
    """Return the text of the four sections, keys sorted."""
    return json.dumps({"format": FORMAT, "version": VERSION, **sections}, sort_keys=True, separators=(",", ":"))


def read(text: str) -> dict[str, dict[str, Any]]:
    """Return the four sections of a plan's text, each a mapping, their values not yet checked.

    Raises:
        FileFormatError: not JSON, not a plan, of an unknown version, or with a section missing or foreign.
    """
    try:
        plan = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(
            "the plan is not JSON", seen=str(error) or type(error).__name__, expected="what to_json() wrote", mend=_MEND
        ) from error
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        malformed("the top", text[:60], f'an object with "format": "{FORMAT}"')
    version = plan.get("version")
    if version != VERSION or isinstance(version, bool):
        raise FileFormatError(
            "the plan is of a version that this effp_fx does not know",
            seen=f"version {version!r}",
            expected=f"version {VERSION}",
            mend="use the effp_fx that wrote it, or a newer one",
        )
    entries(plan, "the top", ("format", "version", *_SECTIONS))
    return {name: entries(plan[name], name) for name in _SECTIONS}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def malformed(where: str, seen: object, expected: str) -> NoReturn:
    """Raise the FileFormatError for one value of a plan."""
    raise FileFormatError(
        "the plan is malformed", where=f"in the plan, {where}", seen=str(seen), expected=expected, mend=_MEND
    )


def entries(value: Any, where: str, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Return `value`, which must be an object, with exactly `keys` where they are given."""
    if not isinstance(value, dict):
        malformed(where, repr(value)[:60], "an object")
    if keys is not None and set(value) != set(keys):
        malformed(where, f"the keys {sorted(value)}", f"the keys {sorted(keys)}")
    return value


def whole(value: Any, where: str, least: int = 0) -> int:
    """Return `value`, which must be an integer from `least` to the largest size."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST_SIZE:
        malformed(where, repr(value)[:60], f"an integer, {least} or more")
    return value


def shape(value: Any, where: str) -> Shape:
    """Return the shape that a JSON list holds."""
    if not isinstance(value, list):
        malformed(where, repr(value)[:60], "a list of sizes")
    return tuple(whole(size, where) for size in value)


def kept(value: Any, where: str, size: int) -> Indices:
    """Return the kept indices that a JSON string holds: at least one, ascending, below `size`."""
    expected = f'ascending indices below {size} in the form "0-12,14", at least one'
    if not isinstance(value, str) or not value:
        malformed(where, repr(value)[:60], expected)
    try:
        return index_ranges.from_text(value, size)
    except ValueError as error:
        malformed(where, error, expected)


def kept_by_dim(value: Any, where: str, sizes: Shape) -> dict[int, Indices]:
    """Return dimension -> kept indices for a tensor of the shape `sizes`; each dimension must lose something."""
    found = {}
    for key, text in entries(value, where).items():
        if key not in map(str, range(len(sizes))):
            malformed(where, f"dimension {key!r}", f"a dimension of the shape {sizes}")
        dim = int(key)
        found[dim] = kept(text, f"{where}[{key}]", sizes[dim])
        if len(found[dim]) == sizes[dim]:
            malformed(f"{where}[{key}]", "every index kept", "only dimensions that lose something")
    return dict(sorted(found.items()))


def size_to_json(value: Size) -> Any:
    """Return an attribute's value for JSON; a tuple, which JSON lacks, as {"tuple": [...]}."""
    if isinstance(value, tuple):
        return {"tuple": [size_to_json(item) for item in value]}
    return [size_to_json(item) for item in value] if isinstance(value, list) else index(value)


def size_from_json(value: Any, where: str) -> Size:
    """Return the attribute's value that `size_to_json` wrote."""
    if isinstance(value, dict):
        items = entries(value, where, ("tuple",))["tuple"]
        found = size_from_json(items, where)
        return tuple(found) if isinstance(found, list) else malformed(where, repr(items)[:60], "a list")
    if isinstance(value, list):
        return [size_from_json(item, where) for item in value]
    return whole(value, where)


def attributes(value: Any, where: str) -> dict[str, Size]:
    """Return attribute name -> value for one module; the names must be plain public or private Python names."""
    found = entries(value, where)
    for name in found:
        if not name.isidentifier() or name.startswith("__"):
            malformed(where, repr(name)[:60], "the name of an attribute")
    return {name: size_from_json(item, f"{where}[{name!r}]") for name, item in found.items()}


def summary(value: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the summary, whose values must be numbers or strings."""
    for name, item in value.items():
        if not isinstance(item, int | float | str) or isinstance(item, bool):
            malformed(f"summary[{name!r}]", repr(item)[:60], "a number or a string")
    return dict(value)
