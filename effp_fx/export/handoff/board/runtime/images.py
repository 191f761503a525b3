"""Pictures: where they come from, how they become the network's input, and boxes drawn on them.

A picture is an array of uint8, height x width x 3, RGB. JPEG and PNG are read by Pillow or OpenCV, whichever is there;
without both, PPM and .npy still are. Written are PNG files, by nothing but zlib.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from .bundle import Failure

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".npy")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_COLOURS = ((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 128, 128), (240, 50, 230))


class Placed(NamedTuple):
    """Where a picture went in the network's input: input = picture * scale + offset, for x and y."""

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]
    """Width and height of the picture."""

    def back(self, boxes: Any) -> Any:
        """Boxes (n, 4) in pixels of the input, as pixels of the picture, cut at its edges."""
        scale = np.asarray(self.scale * 2, dtype=np.float32)
        offset = np.asarray(self.offset * 2, dtype=np.float32)
        most = np.asarray(self.size * 2, dtype=np.float32)
        return np.clip((boxes - offset) / scale, 0, most)


def read(path: Path) -> Any:
    """A picture from a file. Raises Failure where it cannot be read here, saying what to install."""
    if not path.is_file():
        raise Failure(f"{path} is not there")
    try:
        if path.suffix.lower() == ".npy":
            return _checked(np.load(str(path), allow_pickle=False), path)
        if path.suffix.lower() == ".ppm":
            return _ppm(path)
        return _by_library(path)
    except (OSError, ValueError, ImportError) as error:  # ImportError: a decoder that Pillow finds is not there
        raise Failure(f"{path} cannot be read: {error}") from error


def _by_library(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError:
        pass
    else:
        with Image.open(str(path)) as opened:
            return np.asarray(opened.convert("RGB"))
    cv2 = opencv(f"reading {path.name}")
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("OpenCV does not know what it is")
    return np.ascontiguousarray(found[:, :, ::-1])


def opencv(what_for: str) -> Any:
    """OpenCV, or Failure: it is needed for this."""
    try:
        import cv2
    except ImportError:
        need = "Pillow or OpenCV" if what_for.startswith("reading") else "OpenCV"
        raise Failure(f"{what_for} needs {need}: pip install pillow, or apt install python3-opencv") from None
    return cv2


def _ppm(path: Path) -> Any:
    data = path.read_bytes()
    fields = data.split(maxsplit=4)
    if len(fields) != 5 or fields[0] != b"P6" or fields[3] != b"255":
        raise ValueError("only PPM files of kind P6 with 255 levels are read")
    wide, high = int(fields[1]), int(fields[2])
    pixels = np.frombuffer(data[-wide * high * 3 :], dtype=np.uint8)
    return _checked(pixels.reshape(high, wide, 3), path)


def _checked(picture: Any, path: Path) -> Any:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"not uint8 of height x width x 3: {picture.dtype} {picture.shape}")
    return picture


def files(folder: Path) -> list[Path]:
    """The pictures in a folder, by name."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise Failure("no picture in {} ({})".format(folder, ", ".join(PICTURES)))
    return found


def frames(source: str) -> Iterator[Any]:
    """The frames of a video file, or of a camera by its number."""
    cv2 = opencv("a video or a camera")
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        raise Failure(f"OpenCV cannot open {source}")
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])
    finally:
        capture.release()


def prepare(picture: Any, how: dict[str, Any]) -> tuple[Any, Placed]:
    """The network's input, without a batch dimension, and where the picture lies in it."""
    fitted, placed = fit(picture, how)
    return normalise(fitted, how), placed


def fit(picture: Any, how: dict[str, Any]) -> tuple[Any, Placed]:
    """The picture as uint8 of the input's height and width: stretched, or whole with a border."""
    high, wide = int(how["height"]), int(how["width"])
    own_high, own_wide = picture.shape[:2]
    if how["resize"] == "stretch":
        return resize(picture, high, wide), Placed((wide / own_wide, high / own_high), (0.0, 0.0), (own_wide, own_high))
    scale = min(high / own_high, wide / own_wide)
    new_high, new_wide = max(1, round(own_high * scale)), max(1, round(own_wide * scale))
    centred = how["align"] == "centre"
    top = (high - new_high) // 2 if centred else 0
    left = (wide - new_wide) // 2 if centred else 0
    whole = np.full((high, wide, 3), how["pad_value"], dtype=np.uint8)
    whole[top : top + new_high, left : left + new_wide] = resize(picture, new_high, new_wide)
    return whole, Placed((new_wide / own_wide, new_high / own_high), (float(left), float(top)), (own_wide, own_high))


def normalise(fitted: Any, how: dict[str, Any]) -> Any:
    """uint8 of height x width x 3 as float32 in the layout of the input."""
    values = fitted[..., ::-1] if how["color"] == "BGR" else fitted
    mean, std = np.asarray(how["mean"], dtype=np.float32), np.asarray(how["std"], dtype=np.float32)
    values = (values.astype(np.float32) * np.float32(how["scale"]) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def resize(picture: Any, high: int, wide: int) -> Any:
    """Bilinear, pixel centres at halves; written out so that every machine gives the same bytes."""
    if picture.shape[:2] == (high, wide):
        return picture
    top, bottom, down = _steps(picture.shape[0], high)
    left, right, across = _steps(picture.shape[1], wide)
    rows = picture[top].astype(np.float32) * (1 - down)[:, None, None]
    rows += picture[bottom].astype(np.float32) * down[:, None, None]
    mixed = rows[:, left] * (1 - across)[None, :, None] + rows[:, right] * across[None, :, None]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _steps(size: int, wanted: int) -> tuple[Any, Any, Any]:
    places = np.clip((np.arange(wanted, dtype=np.float64) + 0.5) * size / wanted - 0.5, 0, size - 1)
    low = np.floor(places).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (places - low).astype(np.float32)


def draw(picture: Any, boxes: Any, labels: Sequence[int], captions: Sequence[str]) -> Any:
    """A copy with a frame for each box, and its caption where Pillow is there to write it."""
    made = np.array(picture)
    thick = max(1, round(max(made.shape[:2]) / 300))
    for box, label in zip(boxes, labels):
        _frame(made, box, _COLOURS[label % len(_COLOURS)], thick)
    return _captioned(made, boxes, labels, captions)


def _frame(made: Any, box: Any, colour: tuple[int, int, int], thick: int) -> None:
    high, wide = made.shape[:2]
    left, right = (int(np.clip(round(float(x)), 0, wide - 1)) for x in (box[0], box[2]))
    top, bottom = (int(np.clip(round(float(y)), 0, high - 1)) for y in (box[1], box[3]))
    made[top : top + thick, left : right + 1] = colour
    made[max(bottom - thick + 1, 0) : bottom + 1, left : right + 1] = colour
    made[top : bottom + 1, left : left + thick] = colour
    made[top : bottom + 1, max(right - thick + 1, 0) : right + 1] = colour


def _captioned(made: Any, boxes: Any, labels: Sequence[int], captions: Sequence[str]) -> Any:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return made
    picture = Image.fromarray(made)
    brush = ImageDraw.Draw(picture)
    for box, label, caption in zip(boxes, labels, captions):
        left, top = float(box[0]) + 1, max(float(box[1]) - 12, 0)
        brush.rectangle(brush.textbbox((left, top), caption), fill=_COLOURS[label % len(_COLOURS)])
        brush.text((left, top), caption, fill=(255, 255, 255))
    return np.asarray(picture)


def write_png(path: Path, picture: Any) -> None:
    """Write a picture as PNG."""
    high, wide = picture.shape[:2]
    rows = np.zeros((high, wide * 3 + 1), dtype=np.uint8)  # the 0 in front of each row: no filter
    rows[:, 1:] = picture.reshape(high, wide * 3)
    header = struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def video_writer(path: Path, first: Any, rate: float) -> Any | None:
    """OpenCV's writer for an MP4 of frames like the first; None where OpenCV has no encoder."""
    cv2 = opencv("writing a video")
    size = (int(first.shape[1]), int(first.shape[0]))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    return writer if writer.isOpened() else None


def show(picture: Any) -> bool:
    """Show a picture in a window; False once the user presses q or Escape."""
    cv2 = opencv("a window")
    cv2.imshow("run.py, q ends it", np.ascontiguousarray(picture[:, :, ::-1]))
    return (cv2.waitKey(1) & 0xFF) not in (27, ord("q"))
