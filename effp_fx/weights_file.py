"""Named tensors and notes in one safetensors file, sealed by a SHA-256; written atomically, read with suspicion.

The file is an ordinary safetensors file that any reader opens. What is ours stands in its metadata under "effp_fx.":
the format version, the notes, which names share one tensor, and the digest over all of that and every tensor's bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from effp_fx import atomic_file
from effp_fx.errors import FileFormatError

VERSION = 1
_PREFIX = "effp_fx."
_VERSION_KEY, _ALIASES, _DIGEST = f"{_PREFIX}format_version", f"{_PREFIX}aliases", f"{_PREFIX}sha256"
_OWN = frozenset({_VERSION_KEY, _ALIASES, _DIGEST})
_MEND_COPY = "copy or download it again, or write it anew with effp_fx.save(model, path)"


def write(path: str | os.PathLike[str], tensors: Mapping[str, object], notes: Mapping[str, str]) -> Path:
    """Write the tensors, each once however many names it has, and the notes; return the path.

    Args:
        tensors: name -> tensor of any device, dtype and memory layout that safetensors can hold.
        notes: name -> text.

    Raises:
        FileFormatError: an entry cannot be stored, or the file cannot be written; what was at `path` is still there.
    """
    stored, aliases = _split_aliases({name: _checked(name, value) for name, value in tensors.items()})
    metadata = {f"{_PREFIX}{name}": text for name, text in notes.items()}
    metadata |= {"format": "pt", _VERSION_KEY: str(VERSION), _ALIASES: json.dumps(aliases, sort_keys=True)}
    metadata[_DIGEST] = _digest(stored, metadata)
    try:
        return atomic_file.write(path, _in_order(to_bytes(stored, metadata)))
    except OSError as error:
        raise FileFormatError("the file cannot be written", where=os.fspath(path), seen=str(error)) from error
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise FileFormatError(
            "safetensors cannot hold these tensors", where=os.fspath(path), seen=str(error)
        ) from error


def _in_order(content: bytes) -> bytes:
    """The same file with sorted metadata: safetensors writes them in the order of a hash table, another in each run."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (CPU, under every name that they were written with) and the notes.

    Raises:
        FileFormatError: the file is missing, truncated, no safetensors file, not one of ours, of a newer format, or
            its contents are not those that were written.
    """
    where = os.fspath(path)
    try:
        with safe_open(where, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = file.metadata() or {}
            _check_version(metadata, where)
            # A file that is still mapped could change under the model; clones cannot.
            stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except OSError as error:
        raise FileFormatError("the file cannot be read", where=where, seen=error.strerror or str(error)) from error
    except SafetensorError as error:
        raise _unreadable(Path(where), error) from error
    if metadata.get(_DIGEST) != _digest(stored, metadata):
        raise FileFormatError(
            "the file was altered after it was written",
            where=where,
            seen="contents that do not give the SHA-256 stored with them",
            mend=_MEND_COPY,
        )
    aliases = _read_aliases(metadata, stored, where)
    notes = {key.removeprefix(_PREFIX): text for key, text in metadata.items() if key not in {*_OWN, "format"}}
    return {**stored, **{alias: stored[name] for alias, name in aliases.items()}}, notes


def memory_of(tensor: Tensor) -> tuple[object, ...]:
    """Return what is equal for two tensors exactly if they are the same elements in memory."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor of any dtype, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _checked(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        seen, mend = type(value).__name__, "keep it as a tensor, or out of the state_dict"
    elif value.layout != torch.strided or value.is_quantized:
        seen, mend = f"a tensor of layout {value.layout}, {value.dtype}", "make it a dense, unquantised tensor"
    elif value.is_meta:
        seen, mend = "a tensor on the meta device", "load the weights first"
    else:
        return value.detach()
    raise FileFormatError(f"the state_dict entry {name!r} cannot be stored", seen=seen, mend=mend)


def _split_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by their first name, as separate contiguous CPU copies, and further name -> first name."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if first.setdefault(memory_of(tensor), name) != name:
            aliases[name] = first[memory_of(tensor)]
    # A copy of each: safetensors refuses tensors that overlap in memory, such as slices of one flat buffer.
    stored = {
        name: tensor.resolve_conj().resolve_neg().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
        if name not in aliases
    }
    return stored, aliases


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    sha = hashlib.sha256()
    sha.update(json.dumps({key: text for key, text in metadata.items() if key != _DIGEST}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        # With the shape and dtype, or the same bytes could be read as other numbers.
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def _check_version(metadata: Mapping[str, str], where: str) -> None:
    text = metadata.get(_VERSION_KEY)
    if text is None:
        raise FileFormatError(
            "the file holds tensors but was not written by effp_fx",
            where=where,
            seen=f"safetensors metadata with the keys {sorted(metadata)}",
            expected="a file from effp_fx.save(model, path)",
            mend="for plain weights: model.load_state_dict(safetensors.torch.load_file(path))",
        )
    if not text.isascii() or not text.isdigit() or int(text[:9]) != VERSION:
        newer = text.isascii() and text.isdigit() and int(text[:9]) > VERSION
        raise FileFormatError(
            "the file is of a newer format than this effp_fx reads" if newer else "the file's format is not known",
            where=where,
            seen=f"format {text[:20]!r}, written by effp_fx {metadata.get(_PREFIX + 'effp_fx', 'of unknown version')}",
            expected=f"format {VERSION}",
            mend="pip install --upgrade effp-fx" if newer else _MEND_COPY,
        )


def _read_aliases(metadata: Mapping[str, str], stored: Mapping[str, Tensor], where: str) -> dict[str, str]:
    try:
        aliases = json.loads(metadata.get(_ALIASES, ""))
        valid = all(name in stored and alias not in stored for alias, name in aliases.items())
    except (ValueError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise FileFormatError("the file's list of tied tensors is malformed", where=where, mend=_MEND_COPY)
    return dict(aliases)


def _unreadable(path: Path, error: SafetensorError) -> FileFormatError:
    """Return the error for a file that safetensors refused: truncated, foreign or damaged."""
    with path.open("rb") as file:
        head = file.read(9)
    size = path.stat().st_size
    if size and (len(head) < 9 or head[8:] != b"{"):
        pickled = head.startswith((b"PK\x03\x04", b"\x80"))
        return FileFormatError(
            "the file is not a safetensors file",
            where=str(path),
            seen="a pickle or zip archive, such as torch.save writes" if pickled else f"it begins {head!r}",
            expected="a file from effp_fx.save(model, path)",
        )
    needed = _announced_size(path)
    if size < needed:
        seen, expected = f"{size} bytes", f"at least {needed} bytes, as its beginning announces"
        return FileFormatError("the file is truncated", where=str(path), seen=seen, expected=expected, mend=_MEND_COPY)
    return FileFormatError("the file is damaged", where=str(path), seen=str(error), mend=_MEND_COPY)


def _announced_size(path: Path) -> int:
    """Return the number of bytes that the header speaks of; as much of it as can be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header_end = 8 + length
        if path.stat().st_size <= header_end:
            return header_end + 1
        try:
            entries = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for entry in entries.values() if "data_offsets" in entry]
            return header_end + int(max(ends, default=0))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return 0
