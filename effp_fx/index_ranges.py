"""Sorted channel indices as short text and back: (0, 1, 2, 5) is "0-2,5"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

_RANGE = re.compile(r"(0|[1-9][0-9]{0,8})(?:-([1-9][0-9]{0,8}))?", re.ASCII)


# A layer's weight, bias and norm keep the same indices, one after the other: each set is worked out once.
@lru_cache(maxsize=1024)
def to_text(indices: tuple[int, ...]) -> str:
    """Write sorted distinct indices, runs of two and more as "first-last"; "" for none.

    Args:
        indices: ascending, without repeats, none negative.
    """
    starts = [0, *(at for at, (one, next_one) in enumerate(pairwise(indices), 1) if next_one != one + 1)]
    runs = zip(starts, [*starts[1:], len(indices)], strict=True)
    return ",".join(
        f"{indices[start]}" if stop - start == 1 else f"{indices[start]}-{indices[stop - 1]}"
        for start, stop in runs
        if stop > start
    )


@lru_cache(maxsize=1024)
def from_text(text: str, size: int) -> tuple[int, ...]:
    """Read what `to_text` wrote.

    Args:
        text: such as "0-2,5".
        size: every index must be below it.

    Raises:
        ValueError: not of that form, not ascending, repeated, or not below `size`; the message says which.
    """
    return tuple(index for first, last in _checked_runs(text, size) for index in range(first, last + 1))


def _checked_runs(text: str, size: int) -> Iterator[tuple[int, int]]:
    previous = -1
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is not an index nor a range of indices")
        first, last = int(match[1]), int(match[2] or match[1])
        if match[2] and last <= first:
            raise ValueError(f"the range {part!r} does not rise")
        if first <= previous:
            raise ValueError(f"{part!r} follows {previous}: unsorted or repeated")
        # Checked before the run is spelled out, so that a wrong number cannot ask for all the memory there is.
        if last >= size:
            raise ValueError(f"{part!r} lies outside 0-{size - 1}")
        previous = last
        yield first, last
