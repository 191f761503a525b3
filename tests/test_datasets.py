"""VOC, COCO and YOLO folders on the disk: read alike, recognised, and every fault named with file and line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from effp_fx.data import VOC_CLASSES, open_dataset, splits, write_scenes
from effp_fx.data.inspection import check_dataset
from effp_fx.errors import DataError
from tests.data_sets import FIRST, SECOND, coco_content, make_coco, make_voc, make_yolo, picture, voc_xml

MAKERS: dict[str, Callable[[Path], Path]] = {"voc": make_voc, "coco": make_coco, "yolo": make_yolo}


@pytest.mark.parametrize("layout", MAKERS)
def test_the_same_images_and_boxes_come_out_of_every_layout(layout: str, tmp_path: Path) -> None:
    dataset = open_dataset(MAKERS[layout](tmp_path))
    assert dataset.classes == ("cat", "dog") and len(dataset) == 2
    image, target = dataset[0]
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8 and image.float().std() > 1
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    torch.testing.assert_close(target["boxes"], torch.tensor([thing[1] for thing in FIRST], dtype=torch.float32))
    torch.testing.assert_close(dataset.target(1)["boxes"], torch.tensor([SECOND[0][1]], dtype=torch.float32))
    assert target["labels"].tolist() == [1, 2] and dataset.target(1)["labels"].tolist() == [2]
    # YOLO has no word for difficult; COCO knows the area of the mask.
    assert target["difficult"].tolist() == [False, layout != "yolo"]
    assert target["area"].tolist() == pytest.approx([198, 375] if layout == "coco" else [396, 750])
    assert target["image_id"] == (7 if layout == "coco" else 0)
    assert (dataset.report.images, dataset.report.boxes, dataset.report.empty) == (2, 3, 0)
    with pytest.raises(IndexError):
        dataset[2]


def test_scenes_are_the_same_in_all_three_layouts(tmp_path: Path) -> None:
    read = {
        layout: open_dataset(write_scenes(tmp_path / layout, images=6, size=64, layout=layout))  # type: ignore[arg-type]
        for layout in MAKERS
    }
    for index in range(6):
        one, two, three = (dataset.target(index) for dataset in read.values())
        keep = ~one["difficult"]
        torch.testing.assert_close(one["boxes"], two["boxes"])
        torch.testing.assert_close(one["boxes"][keep], three["boxes"], atol=1e-3, rtol=0)
        names = [
            [read[layout].classes[label - 1] for label in t["labels"]] for layout, t in (("voc", one), ("coco", two))
        ]
        assert names[0] == names[1]


# --- VOC ---


def test_voc_2007_and_2012_are_joined_and_have_the_twenty_classes(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        make_voc(tmp_path / "VOCdevkit" / year, "trainval")
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("b\n")
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "cat_trainval.txt").write_text("a  1\nb -1\n")
    for place in (tmp_path, tmp_path / "VOCdevkit"):
        both = open_dataset(place, "trainval")
        assert len(both) == 4 and both.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
        assert [both.target(index)["image_id"] for index in range(4)] == [0, 1, 2, 3]
        assert both.target(0)["labels"].tolist() == [VOC_CLASSES.index("cat") + 1, VOC_CLASSES.index("dog") + 1]
        assert len(open_dataset(place, "test")) == 1
        assert splits(place) == ["test", "trainval"]


def test_voc_class_names_are_the_same_for_every_split(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    assert open_dataset(tmp_path, "val").classes == ("cat", "dog")
    assert open_dataset(tmp_path, "val", classes=("dog", "emu")).target(0)["labels"].tolist() == [1]


def test_parts_of_an_object_and_numbers_with_a_point_are_read_rightly(tmp_path: Path) -> None:
    make_voc(tmp_path)
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    text = voc_xml("b", SECOND).replace("<xmax>8<", "<xmax>8.5<").replace("  </object>", f"    {part}\n  </object>")
    (tmp_path / "Annotations" / "b.xml").write_text(text)
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog") and dataset.target(1)["boxes"].tolist() == [[0, 0, 8.5, 9]]


# --- COCO and YOLO ---


def test_coco_is_found_under_its_usual_names(tmp_path: Path) -> None:
    make_coco(tmp_path / "year", "train2017")
    assert len(open_dataset(tmp_path / "year", "train")) == 2 and splits(tmp_path / "year") == ["train2017"]
    for stem in "ab":
        picture(tmp_path / "beside" / "train" / f"{stem}.jpg")
    beside = tmp_path / "beside" / "train" / "_annotations.coco.json"
    beside.write_text(json.dumps(coco_content()))
    assert len(open_dataset(tmp_path / "beside")) == 2 and splits(tmp_path / "beside") == ["train"]
    assert len(open_dataset(beside)) == 2


def test_yolo_polygons_lists_and_roboflow_paths(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").write_text("1 0 0 0.2 0 0.2 0.3\n\n")
    (tmp_path / "list.txt").write_text("images/train/b.jpg\n")
    (tmp_path / "data.yaml").write_text("train: ../images/train\nval: list.txt\nnames: [cat, dog]\n")
    boxes = open_dataset(tmp_path / "data.yaml", "val").target(0)["boxes"]
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0.0, 8.0, 9.0]]))
    assert len(open_dataset(tmp_path, "train")) == 2 and splits(tmp_path) == ["train", "val"]


def test_a_yolo_image_without_labels_is_a_negative_but_not_all_of_them(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").unlink()
    dataset = open_dataset(tmp_path)
    assert dataset.target(1)["boxes"].shape == (0, 4) and dataset.report.empty == 1
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    with pytest.raises(DataError, match="no image of the split has labels") as error:
        open_dataset(tmp_path)
    assert str(error.value.expected).endswith("labels/train/a.txt")


# --- faults ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def fault(name: str, kind: str, where: str, outcome: str, damage: Callable[[Path], object]) -> Any:
    return pytest.param(name, kind, where, outcome, damage, id=f"{name}-{kind.replace(' ', '-')}-{where}")


B_XML, B_TXT, JSON = "Annotations/b.xml", "labels/train/b.txt", "annotations/instances_train.json"
FAULTS = [
    fault("voc", "missing image", "JPEGImages/b.jpg", "image left out", lambda r: (r / "JPEGImages/b.jpg").unlink()),
    fault("voc", "corrupt image", "JPEGImages/b.jpg", "image left out", lambda r: cut(r / "JPEGImages/b.jpg")),
    fault(
        "voc",
        "corrupt image",
        "JPEGImages/b.jpg",
        "image left out",
        lambda r: (r / "JPEGImages/b.jpg").write_text("<html>404</html>"),
    ),
    fault("voc", "missing annotation", B_XML, "image left out", lambda r: (r / B_XML).unlink()),
    fault("voc", "malformed annotation", f"{B_XML}:9", "image left out", lambda r: edit(r / B_XML, "</object>", "")),
    fault("voc", "malformed annotation", f"{B_XML}:4", "box left out", lambda r: edit(r / B_XML, ">8<", ">eight<")),
    fault("voc", "malformed annotation", f"{B_XML}:4", "box left out", lambda r: edit(r / B_XML, ">8<", "><")),
    fault("voc", "wrong image size", f"{B_XML}:3", "image left out", lambda r: edit(r / B_XML, ">40<", ">41<")),
    fault("voc", "box outside the image", f"{B_XML}:7", "box clipped", lambda r: edit(r / B_XML, ">8<", ">44<")),
    fault("voc", "box without area", f"{B_XML}:7", "box left out", lambda r: edit(r / B_XML, ">8<", ">0<")),
    fault(
        "voc",
        "duplicated id",
        "ImageSets/Main/train.txt:3",
        "one of them kept",
        lambda r: (r / "ImageSets/Main/train.txt").write_text("a\nb\nb\n"),
    ),
    fault("yolo", "malformed annotation", f"{B_TXT}:2", "box left out", lambda r: append(r / B_TXT, "1 0.5 0.5 0.1")),
    fault("yolo", "malformed annotation", f"{B_TXT}:2", "box left out", lambda r: append(r / B_TXT, "dog 0 0 1 1")),
    fault("yolo", "unknown class", f"{B_TXT}:2", "box left out", lambda r: append(r / B_TXT, "2 .5 .5 .1 .1")),
    fault("yolo", "box outside the image", f"{B_TXT}:2", "box left out", lambda r: append(r / B_TXT, "1 20 15 8 9")),
    fault("yolo", "box without area", f"{B_TXT}:2", "box left out", lambda r: append(r / B_TXT, "1 .5 .5 0 .1")),
    fault(
        "coco",
        "duplicated id",
        f"{JSON}, images[2]",
        "one of them kept",
        lambda r: change(r, "images", {"id": 9, "file_name": "a.jpg"}),
    ),
    fault(
        "coco",
        "malformed annotation",
        f"{JSON}, annotations[3]",
        "box left out",
        lambda r: change(r, "annotations", {"id": 4}),
    ),
    fault(
        "coco",
        "malformed annotation",
        f"{JSON}, annotation 4",
        "box left out",
        lambda r: change(r, "annotations", {"id": 4, "image_id": 8, "category_id": 3, "bbox": [1, 1, 5, 5]}),
    ),
    fault(
        "coco",
        "malformed annotation",
        f"{JSON}, annotation 4",
        "box left out",
        lambda r: change(r, "annotations", {"id": 4, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5]}),
    ),
    fault(
        "coco",
        "unknown class",
        f"{JSON}, annotation 4",
        "box left out",
        lambda r: change(r, "annotations", {"id": 4, "image_id": 7, "category_id": 4, "bbox": [1, 1, 5, 5]}),
    ),
    fault(
        "coco",
        "box without area",
        f"{JSON}, annotation 4",
        "box left out",
        lambda r: change(r, "annotations", {"id": 4, "image_id": 7, "category_id": 3, "bbox": [1, 1, 0, 5]}),
    ),
    fault(
        "coco",
        "wrong image size",
        f"{JSON}, image 7",
        "image left out",
        lambda r: edit(r / JSON, '"width": 40', '"width": 50'),
    ),
]


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def change(root: Path, table: str, row: dict[str, object]) -> None:
    content = coco_content()
    content[table].append(row)
    (root / JSON).write_text(json.dumps(content))


@pytest.mark.parametrize("layout,kind,where,outcome,damage", FAULTS)
def test_a_fault_stops_with_its_place_or_is_skipped_and_counted(
    layout: str, kind: str, where: str, outcome: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    root = MAKERS[layout](tmp_path)
    damage(root)
    with pytest.raises(DataError, match=kind) as error:
        open_dataset(root)
    assert error.value.where == str(root / where) and error.value.seen and "on_error" in str(error.value.mend)
    report = open_dataset(root, on_error="skip").report
    (problem,) = report.problems
    assert (problem.kind, problem.where, problem.outcome) == (kind, str(root / where), outcome)
    assert report.counts() == {kind: 1}
    boxes = {"image left out": (1, 2), "box left out": (2, 3), "box clipped": (2, 3), "one of them kept": (2, 3)}[
        outcome
    ]
    left_out_of_b = layout == "voc" and outcome == "box left out"  # elsewhere the faulty box was added
    lost_a = layout == "coco" and outcome == "image left out"
    assert (report.images, report.boxes) == (boxes[0], boxes[1] - left_out_of_b - lost_a)


def test_a_clipped_box_ends_at_the_image_and_one_pixel_too_many_is_no_fault(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    edit(root / B_XML, ">8<", ">44<")
    assert open_dataset(root, on_error="skip").target(1)["boxes"].tolist() == [[0, 0, 40, 9]]
    edit(root / B_XML, ">44<", ">41<")
    assert open_dataset(root).target(1)["boxes"].tolist() == [[0, 0, 40, 9]]


def test_names_that_were_not_asked_for_are_unknown_classes(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    report = open_dataset(root, classes=("cat",), on_error="skip").report
    assert [problem.where for problem in report.problems] == [f"{root}/Annotations/a.xml:9", f"{root}/{B_XML}:4"]
    assert report.counts() == {"unknown class": 2} and report.empty == 1


def test_an_image_that_breaks_when_it_is_decoded_is_replaced_by_the_next(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "JPEGImages" / "a.jpg").unlink()
    path = picture(root / "JPEGImages" / "a.png")
    whole = bytearray(path.read_bytes())
    whole[100:200] = bytes(100)  # after the header, which alone is read when the folder is
    path.write_bytes(whole)
    with pytest.raises(DataError, match="corrupt image") as error:
        open_dataset(root)[0]
    assert error.value.where == str(path)
    dataset = open_dataset(root, on_error="skip")
    assert dataset[0][1]["image_id"] == 1 and dataset.report.counts() == {"corrupt image": 1}
    (check,) = check_dataset(root)
    assert (check.report.images, check.report.counts()) == (1, {"corrupt image": 1})


def test_on_error_takes_no_other_word(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="on_error is not known"):
        open_dataset(make_voc(tmp_path), on_error="ignore")  # type: ignore[arg-type]


# --- recognising ---


def test_what_is_not_recognised_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="not recognised") as error:
        open_dataset(tmp_path)
    assert error.value.seen == "notes.txt"
    for word in ("ImageSets/Main", "VOC2007/", "instances_*.json", "data.yaml"):
        assert word in str(error.value.expected)
    with pytest.raises(DataError, match="no such data set"):
        open_dataset(tmp_path / "absent")


def test_a_folder_with_two_layouts_needs_a_word(tmp_path: Path) -> None:
    make_yolo(make_voc(tmp_path))
    with pytest.raises(DataError, match="not clear") as error:
        open_dataset(tmp_path)
    assert f'"yolo:{tmp_path}"' in str(error.value.mend)
    assert not open_dataset(f"yolo:{tmp_path}").target(0)["difficult"].any()
    assert open_dataset(f"voc:{tmp_path}").target(0)["difficult"].any()


@pytest.mark.parametrize("layout", MAKERS)
def test_a_split_that_is_not_there_says_which_are(layout: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'test'") as error:
        open_dataset(MAKERS[layout](tmp_path), "test")
    assert error.value.seen == "splits train"


def test_a_split_without_an_image_to_use_says_why(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    for stem in "ab":
        (root / "JPEGImages" / f"{stem}.jpg").unlink()
    with pytest.raises(DataError, match="no image that can be used") as error:
        open_dataset(root, on_error="skip")
    assert str(error.value.seen).startswith("2 x missing image")


@pytest.mark.parametrize(
    "text,what,where",
    [
        ('{"images": [],\n "annotations": [}', "malformed annotation", ":2"),
        ("[1, 2]", "not a COCO detection file", ""),
        ('{"images": [], "annotations": []}', "not a COCO detection file", ""),
    ],
)
def test_a_json_that_is_not_coco_is_refused(text: str, what: str, where: str, tmp_path: Path) -> None:
    (make_coco(tmp_path) / JSON).write_text(text)
    with pytest.raises(DataError, match=what) as error:
        open_dataset(tmp_path, on_error="skip")
    assert error.value.where == f"{tmp_path / JSON}{where}"


@pytest.mark.parametrize(
    "text,what,where",
    [
        ("names: [cat, dog]\ntrain: [images\n", "not YAML", ":3"),
        ("train: images/train\n", "does not name the classes", ""),
        ("names: {a: cat}\ntrain: images/train\n", "does not number the classes", ""),
        ("names: [cat, dog]\ntrain: elsewhere\n", "not where the YAML says", ""),
    ],
)
def test_a_yaml_that_says_too_little_is_refused(text: str, what: str, where: str, tmp_path: Path) -> None:
    file = make_yolo(tmp_path) / "data.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=what) as error:
        open_dataset(file)
    assert error.value.where == f"{file}{where}"
