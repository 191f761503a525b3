"""A folder as one archive whose bytes depend on names and contents alone."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from effp_fx import atomic_file


def write(folder: Path, names: Iterable[str], path: Path) -> Path:
    """Write these files of the folder, under the folder's name, to a .tar.gz: no times, no owners, sorted."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(names):
            data = (folder / name).read_bytes()
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size, entry.mtime = len(data), 0
            entry.mode = 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as zipped:
        zipped.write(stream.getvalue())
    return atomic_file.write(path, packed.getvalue())
