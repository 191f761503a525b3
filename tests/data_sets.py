"""Small data sets on the disk for the tests: two images, three boxes, in each of the layouts, to be damaged."""

import json
from pathlib import Path

from PIL import Image

XML = """<annotation>
  <filename>{stem}.jpg</filename>
  <size><width>40</width><height>30</height><depth>3</depth></size>
{objects}</annotation>
"""
OBJECT = """  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
  </object>
"""
# class, pixel edges, difficult: the same in all layouts
FIRST = (("cat", (2, 3, 20, 25), 0), ("dog", (10, 5, 40, 30), 1))
SECOND = (("dog", (0, 0, 8, 9), 0),)


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_mandelbrot(size, (-2, -1.2, 1, 1.2), 20).convert("RGB").save(path)
    return path


def voc_xml(stem: str, things: tuple[tuple[str, tuple[int, ...], int], ...]) -> str:
    objects = (OBJECT.format(x0 + 1, y0 + 1, x1, y1, name=n, difficult=d) for n, (x0, y0, x1, y1), d in things)
    return XML.format(stem=stem, objects="".join(objects))


def make_voc(root: Path, split: str = "train") -> Path:
    for stem, things in (("a", FIRST), ("b", SECOND)):
        picture(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, things))
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("a\nb\n")
    return root


def coco_content() -> dict[str, list[dict[str, object]]]:
    rows = [(7, thing) for thing in FIRST] + [(9, thing) for thing in SECOND]
    return {
        "images": [
            {"id": key, "file_name": f"{stem}.jpg", "width": 40, "height": 30} for key, stem in ((7, "a"), (9, "b"))
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {
                "id": number,
                "image_id": key,
                "category_id": {"cat": 3, "dog": 18}[name],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0) / 2,
                "iscrowd": difficult,
            }
            for number, (key, (name, (x0, y0, x1, y1), difficult)) in enumerate(rows, start=1)
        ],
    }


def make_coco(root: Path, split: str = "train", content: object = None) -> Path:
    for stem in "ab":
        picture(root / split / f"{stem}.jpg")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content or coco_content(), indent=1))
    return root


def make_yolo(root: Path, split: str = "train") -> Path:
    labels = root / "labels" / split
    labels.mkdir(parents=True)
    for stem, things in (("a", FIRST), ("b", SECOND)):
        picture(root / "images" / split / f"{stem}.jpg")
        lines = (
            f"{('cat', 'dog').index(name)} {(x0 + x1) / 80} {(y0 + y1) / 60} {(x1 - x0) / 40} {(y1 - y0) / 30}\n"
            for name, (x0, y0, x1, y1), _ in things
        )
        (labels / f"{stem}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text(f"path: .\n{split}: images/{split}\nnames:\n  0: cat\n  1: dog\n")
    return root
