"""Writes a data set of drawn scenes, of any size, from a seed: the same seed gives the same bytes, file by file."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effp_fx.data.backdrop import jpeg_quality
from effp_fx.data.drawing import Difficulty, draw_scene
from effp_fx.data.layouts import LAYOUTS, Drawn, Layout, image_folder, write_annotations
from effp_fx.data.shapes import CLASSES
from effp_fx.errors import DataError

RECIPE = "scenes.json"
"""The file that says how a set was made; it is there when the set is whole."""
_VERSION = 1
"""Goes up when the same seed would give other images."""
_SPLITS = ("train", "val", "test")
_CHUNK = 50


@dataclass(frozen=True)
class _Recipe:
    size: int
    seed: int
    difficulty: Difficulty
    smallest: int
    most: int
    layout: Layout


def write_scenes(
    folder: str | os.PathLike[str],
    *,
    images: int = 2000,
    val_images: int | None = None,
    test_images: int | None = None,
    size: int = 128,
    seed: int = 0,
    difficulty: float | Difficulty = 0.2,
    smallest: int | None = None,
    most: int = 4,
    layout: Layout = "voc",
    processes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Draw a data set of `len(CLASSES)` classes and write it; a set that is there already, made alike, is kept.

    Image number i of a split depends on the seed, the split, i and the options below `size` only: a larger set begins
    with the smaller one. The folder appears when all of it is written.

    Args:
        folder: where; absent, empty, or such a set.
        images: in the training split.
        val_images: in the validation split; None: a quarter of `images`, at least one.
        test_images: in the test split; None: as many as in the validation split.
        size: side of the square images, pixels.
        seed: another seed, another set.
        difficulty: 0 (clean) to 1 for clutter, occlusion, noise and jitter together, or each of its own.
        smallest: longer side of the smallest objects, pixels; None: a ninth of the image, at least 8. The largest take
            two thirds of the image.
        most: objects in an image, at most.
        layout: "voc", "coco" or "yolo".
        processes: as many draw; the bytes are the same.
        progress: told how far it is.

    Raises:
        DataError: an option makes no sense, or the folder holds something else.
    """
    val_images = max(images // 4, 1) if val_images is None else val_images
    counts = (images, val_images, val_images if test_images is None else test_images)
    if not isinstance(difficulty, Difficulty):
        difficulty = Difficulty.of(difficulty)
    smallest = max(size // 9, 8) if smallest is None else smallest
    recipe = _Recipe(size, seed, difficulty, smallest, most, layout)
    _check(recipe, counts, processes)
    root = Path(folder)
    note = {"version": _VERSION, **dict(zip(_SPLITS, counts, strict=True)), **asdict(recipe)}
    if _is_there(root, note):
        return root
    beside = root.with_name(f".{root.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        _write_set(beside, recipe, counts, processes, progress or (lambda _: None))
        (beside / RECIPE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return root


def _check(recipe: _Recipe, counts: tuple[int, ...], processes: int) -> None:
    rules = (
        ("images", counts[0], counts[0] >= 1, "at least 1"),
        ("val_images", counts[1], counts[1] >= 0, "at least 0"),
        ("test_images", counts[2], counts[2] >= 0, "at least 0"),
        ("size", recipe.size, 32 <= recipe.size <= 4096, "32 to 4096 pixels"),
        ("seed", recipe.seed, recipe.seed >= 0, "at least 0"),
        ("smallest", recipe.smallest, 4 <= recipe.smallest <= recipe.size // 2, "4 pixels to half of the size"),
        ("most", recipe.most, 1 <= recipe.most <= 200, "1 to 200 objects"),
        ("layout", recipe.layout, recipe.layout in LAYOUTS, " or ".join(LAYOUTS)),
        ("processes", processes, processes >= 1, "at least 1"),
        *((name, value, 0 <= value <= 1, "0 to 1") for name, value in asdict(recipe.difficulty).items()),
    )
    for name, value, holds, expected in rules:
        if not holds:
            raise DataError(f"the scenes cannot be drawn with this {name}", seen=f"{name}={value}", expected=expected)


def _is_there(root: Path, note: dict[str, Any]) -> bool:
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError("scenes are written into a folder", where=str(root), seen="a file")
    if not any(root.iterdir()):
        return False
    made = _read_recipe(root / RECIPE)
    if made == note:
        return True
    changed = [f"{key}={made[key]}" for key in note if key in made and made[key] != note[key]]
    raise DataError(
        "the folder holds something else, and nothing is written over it",
        where=str(root),
        seen=f"scenes made with {', '.join(changed)}" if changed else f"files, and no {RECIPE} of this version",
        mend="name another folder, or remove this one",
    )


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def _write_set(
    root: Path, recipe: _Recipe, counts: tuple[int, ...], processes: int, progress: Callable[[str], None]
) -> None:
    jobs = [
        (split, range(begin, min(begin + _CHUNK, count)))
        for split, count in enumerate(counts)
        for begin in range(0, count, _CHUNK)
    ]
    for split in _SPLITS:
        image_folder(root, recipe.layout, split).mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Drawn]] = {split: [] for split in _SPLITS}
    done = 0
    with _workers(min(processes, len(jobs))) as run:
        for number, drawn in run(root, recipe, jobs):
            splits[_SPLITS[number]] += drawn
            done += len(drawn)
            if done % (10 * _CHUNK) == 0 or done == sum(counts):
                progress(f"draw scenes: {done} of {sum(counts)}")
    write_annotations(root, recipe.layout, splits, CLASSES)


_Jobs = list[tuple[int, range]]
_Run = Callable[[Path, _Recipe, _Jobs], Iterable[tuple[int, list[Drawn]]]]


@contextmanager
def _workers(processes: int) -> Iterator[_Run]:
    """What runs the jobs, in their order."""
    if processes == 1:
        yield lambda root, recipe, jobs: (_draw_chunk(root, recipe, *job) for job in jobs)
        return
    # A fresh process would import all of effp_fx, which takes longer than a thousand scenes.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    pool: Executor
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(method)) as pool:
        yield lambda root, recipe, jobs: pool.map(
            _draw_chunk, [root] * len(jobs), [recipe] * len(jobs), *zip(*jobs, strict=True)
        )


def _draw_chunk(root: Path, recipe: _Recipe, split: int, numbers: range) -> tuple[int, list[Drawn]]:
    folder = image_folder(root, recipe.layout, _SPLITS[split])
    return split, [_draw_one(folder, recipe, split, number) for number in numbers]


def _draw_one(folder: Path, recipe: _Recipe, split: int, number: int) -> Drawn:
    random = np.random.default_rng([recipe.seed, split, number])
    scene = draw_scene(random, recipe.size, recipe.difficulty, smallest=recipe.smallest, most=recipe.most)
    stem = f"{_SPLITS[split]}_{number + 1:06d}"
    scene.image.save(folder / f"{stem}.jpg", "JPEG", quality=jpeg_quality(random, recipe.difficulty.noise))
    return Drawn(stem, recipe.size, scene.objects)
