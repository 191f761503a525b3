"""Scenes of our generator as data sets for each task of Ultralytics: boxes, polygons, corners, key points, crops."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from effp_fx.data import write_scenes

SPLITS = ("train", "val")


def data_for(task: str, folder: Path, *, images: int, size: int) -> str:
    """Write the data of a task, and return what `train(data=...)` takes.

    Polygons, oriented boxes and key points are the corners of the boxes: the heads have something to learn, no more.
    """
    root = write_scenes(
        folder / "scenes", images=images, val_images=images // 2, test_images=1, size=size, layout="yolo"
    )
    if task == "detect":
        return str(root / "data.yaml")
    made = folder / task
    if made.exists():
        shutil.rmtree(made)
    if task == "classify":
        for split in SPLITS:
            _write_crops(root, made, split)
        return str(made)
    for split in SPLITS:
        shutil.copytree(root / "images" / split, made / "images" / split)
        (made / "labels" / split).mkdir(parents=True)
        for path in (root / "labels" / split).glob("*.txt"):
            lines = [_line(task, text) for text in path.read_text().splitlines()]
            (made / "labels" / split / path.name).write_text("".join(lines))
    text = (root / "data.yaml").read_text()
    extra = "kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if task == "pose" else ""
    (made / "data.yaml").write_text(text + extra)
    return str(made / "data.yaml")


def _line(task: str, text: str) -> str:
    number, *box = text.split()
    x, y, wide, high = map(float, box)
    left, right, top, bottom = x - wide / 2, x + wide / 2, y - high / 2, y + high / 2
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    if task == "pose":
        # Left and right change places when an image is flipped, so the corners go in pairs.
        points = " ".join(f"{one:.6f} {two:.6f} 2" for one, two in (corners[0], corners[1], corners[3], corners[2]))
        return f"{text} {points}\n"
    return f"{number} " + " ".join(f"{one:.6f} {two:.6f}" for one, two in corners) + "\n"


def _write_crops(root: Path, made: Path, split: str) -> None:
    names = [line.split(": ")[1] for line in (root / "data.yaml").read_text().split("names:\n")[1].splitlines()]
    for name in names:
        (made / split / name).mkdir(parents=True)
    for path in sorted((root / "labels" / split).glob("*.txt")):
        source = next((root / "images" / split).glob(f"{path.stem}.*"))
        with Image.open(source) as image:
            for index, text in enumerate(path.read_text().splitlines()):
                number, *box = text.split()
                x, y, wide, high = map(float, box)
                edges = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
                pixels = [round(edge * image.size[at % 2]) for at, edge in enumerate(edges)]
                crop = image.convert("RGB").crop(tuple(pixels)).resize((64, 64))
                crop.save(made / split / names[int(number)] / f"{path.stem}_{index}.png")
