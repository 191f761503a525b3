"""Writing a file whole or not at all: a reader never meets half of it, a failure leaves what was there before."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` beside `path`, flush it to the disk, then put it in the place of `path`; return the path.

    A link is followed, so the file it points at is replaced and the link stays. New files get the permissions that the
    umask leaves, replaced ones keep theirs.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        # Not tempfile: its files are readable by their owner only, and that would stay after the move.
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(beside, target.stat().st_mode & 0o777)
        os.replace(beside, target)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    _flush_folder(target.parent)
    return Path(path)


def _flush_folder(folder: Path) -> None:
    # Makes the move itself survive a power cut; some systems do not open folders, and there the move has to do.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
