"""Scenes: the same bytes from the same seed, boxes that are exactly what is seen, hard as asked, no file lost."""

import colorsys
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effp_fx.data import drawing, open_dataset, scenes, shapes, write_scenes
from effp_fx.data.drawing import Difficulty, draw_scene
from effp_fx.data.shapes import CLASSES
from effp_fx.errors import DataError

CLEAN, HARD = Difficulty.of(0), Difficulty.of(1)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_the_same_seed_gives_the_same_bytes_on_any_number_of_processes(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "_CHUNK", 2)
    options = {"images": 7, "val_images": 3, "size": 48, "layout": layout}
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    write_scenes(one, **options, seed=5)
    write_scenes(two, **options, seed=5, processes=2)
    write_scenes(other, **options, seed=6)
    assert digests(one) == digests(two)
    first = next(name for name in digests(one) if name.endswith("train_000001.jpg"))
    assert digests(one)[first] != digests(other)[first]


def test_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    small = digests(write_scenes(tmp_path / "small", images=2, val_images=1, size=48))
    large = digests(write_scenes(tmp_path / "large", images=4, val_images=2, size=48))
    pictures = [name for name in small if name.endswith((".jpg", ".xml"))]
    assert len(pictures) == 8 and all(small[name] == large[name] for name in pictures)


def test_a_box_is_exactly_what_is_seen_of_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pure colours on black, nothing added by the sensor: what is seen can be told from the pixels alone.
    monkeypatch.setattr(drawing, "background", lambda random, size, clutter: Image.new("RGB", (size, size)))
    monkeypatch.setattr(drawing, "sensor", lambda random, canvas, noise: canvas)
    monkeypatch.setattr(drawing, "_strokes_across", lambda *_: None)
    monkeypatch.setattr(drawing, "_outlined", lambda *_: None)
    monkeypatch.setattr(
        drawing,
        "_filled",
        lambda random, canvas, name, frame, back, jitter: Image.new("RGB", frame[2:], (250, 250, 250)),
    )
    judged = 0
    for seed in range(30):
        scene = draw_scene(np.random.default_rng(seed), 96, CLEAN, most=1)
        bright = np.asarray(scene.image)[..., 0] >= 125
        rows, columns = np.nonzero(bright)
        if scene.objects:
            assert scene.objects[0].box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert scene.objects[0].area == bright.sum()
            judged += 1
    assert judged > 25


def test_scales_reach_from_8_pixels_to_two_thirds_of_the_image_and_are_log_uniform() -> None:
    random = np.random.default_rng(0)
    sides = [place[2] for _ in range(4000) if (place := drawing._free_place(random, 300, 8, [], 0.5)) is not None]
    assert 8 <= min(sides) < 8.1 and 198 < max(sides) <= 200
    assert np.histogram(np.log(sides), bins=4)[0].min() > 900


@pytest.mark.parametrize("side", [8, 30, 120])
def test_an_object_is_as_large_as_its_scale(side: int) -> None:
    for seed, shape in enumerate(shapes.SHAPES.values()):
        polygons, _ = drawing._posed(np.random.default_rng(seed), shape, side, 1.0)
        mask = np.asarray(drawing._mask([polygon + side for polygon in polygons], 2 * side, 2 * side))
        rows, columns = np.nonzero(mask >= 128)
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - side) <= 1.5


def test_every_class_is_drawn_as_often() -> None:
    names = [one.name for seed in range(150) for one in draw_scene(np.random.default_rng(seed), 48, CLEAN).objects]
    counts = [names.count(name) for name in CLASSES]
    assert len(CLASSES) >= 10 and min(counts) > 0.5 * np.mean(counts)


def test_what_is_hardly_seen_is_difficult_or_not_annotated() -> None:
    ids = np.zeros((40, 40), dtype=np.uint8)
    for number, seen in enumerate((100, 25, 4), start=1):  # of 100 pixels each
        ids[10 * number : 10 * number + 5].flat[:seen] = number
    placed = [drawing._Placed(name, (0, 0, 40, 40), 100) for name in ("disc", "ring", "star")]
    objects = drawing._annotate(ids, placed)
    assert [(one.name, one.difficult) for one in objects] == [("disc", False), ("ring", True)]


def test_occlusion_clutter_and_noise_each_do_what_they_say() -> None:
    def occluded(difficulty: Difficulty) -> float:
        made = [draw_scene(np.random.default_rng(seed), 96, difficulty) for seed in range(30)]
        return float(np.mean([one.occluded for scene in made for one in scene.objects]))

    def grain(difficulty: Difficulty) -> float:
        made = [np.asarray(draw_scene(np.random.default_rng(seed), 96, difficulty).image, float) for seed in range(10)]
        return float(np.mean([np.abs(np.diff(image, axis=1)).mean() for image in made]))

    assert occluded(CLEAN) < 0.1 < 0.3 < occluded(Difficulty(0, 1, 0, 0))
    assert grain(Difficulty(0, 0, 1, 0)) > 1.5 * grain(CLEAN)
    assert grain(Difficulty(1, 0, 0, 0)) > 1.1 * grain(CLEAN)


def test_jitter_takes_a_class_from_its_own_colour_and_pose_to_any() -> None:
    random = np.random.default_rng(0)

    def hues(jitter: float) -> list[float]:
        colours = [drawing._own_colour(random, "star", jitter) for _ in range(200)]
        return [colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0] for colour in colours]

    assert np.ptp(hues(0)) < 0.03 and np.ptp(hues(1)) > 0.95
    still, _ = drawing._posed(random, shapes.SHAPES["square"], 20, 0.0)
    assert np.allclose(np.abs(still[0]), 10)


def test_textures_tell_the_striped_and_the_checkered_from_the_plain() -> None:
    axis = np.linspace(-0.99, 0.99, 60, dtype=np.float32)
    stripes = shapes.pattern("stripes", *np.meshgrid(axis, axis))
    checks = shapes.pattern("checks", *np.meshgrid(axis, axis))
    assert np.diff(stripes, axis=1).any() and not np.diff(stripes, axis=0).any()
    assert np.diff(checks, axis=1).any() and np.diff(checks, axis=0).any()


def test_a_set_that_is_there_is_kept_and_another_is_not_written_over_it(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "set", images=2, size=48)
    stamp = (root / "JPEGImages" / "train_000001.jpg").stat().st_mtime_ns
    write_scenes(root, images=2, size=48)
    assert (root / "JPEGImages" / "train_000001.jpg").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="nothing is written over it") as error:
        write_scenes(root, images=3, size=48)
    assert error.value.where == str(root) and "train=2" in str(error.value.seen)
    assert error.value.mend == "name another folder, or remove this one"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something else"):
        write_scenes(tmp_path, images=1, size=48)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="into a folder"):
        write_scenes(tmp_path / "thesis.txt", images=1, size=48)


def test_a_run_that_dies_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(scenes, "write_annotations", no_space)
    with pytest.raises(OSError, match="no space"):
        write_scenes(tmp_path / "set", images=1, size=48)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0},
        {"val_images": -1},
        {"size": 16},
        {"seed": -1},
        {"smallest": 2},
        {"smallest": 100},
        {"most": 0},
        {"layout": "pascal"},
        {"difficulty": 1.5},
        {"processes": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_named(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        write_scenes(tmp_path / "set", **{"images": 1, **wrong})  # type: ignore[arg-type]
    (name, value) = next(iter(wrong.items()))
    assert str(value) in str(error.value.seen) and error.value.expected
    assert name in error.value.what or name == "difficulty"
    assert not (tmp_path / "set").exists()


def test_the_recipe_says_how_the_set_was_made(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "set", images=3, val_images=2, test_images=1, size=64, seed=9, difficulty=1.0)
    recipe = json.loads((root / scenes.RECIPE).read_text())
    assert (recipe["train"], recipe["val"], recipe["test"], recipe["seed"]) == (3, 2, 1, 9)
    assert recipe["difficulty"] == {"clutter": 1.0, "occlusion": 1.0, "noise": 1.0, "jitter": 1.0}
    lists = root / "ImageSets" / "Main"
    assert (lists / "trainval.txt").read_text() == (lists / "train.txt").read_text() + (lists / "val.txt").read_text()
    assert [len(open_dataset(root, split)) for split in ("train", "val", "trainval", "test")] == [3, 2, 5, 1]
