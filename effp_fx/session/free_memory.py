"""Gives memory that is no longer used back to the system: large graphs come and go while a model is analysed."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def free_memory() -> None:
    """Collect cycles; then, where the C library keeps what was freed (glibc does), make it let go.

    A set-up of a session on SSD300 leaves some 400 MiB that nothing refers to, and that training cannot always fill.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or none to be had by name
        ctypes.CDLL(None).malloc_trim(0)
