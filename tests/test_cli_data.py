"""`effp-fx data`: draws a set, looks one through, exit status 0, 1 and 2."""

import json
from pathlib import Path

import pytest

from effp_fx import cli
from effp_fx.data import open_dataset
from tests.data_sets import make_voc

Captured = pytest.CaptureFixture[str]


def test_scenes_are_drawn_and_looked_through(tmp_path: Path, capsys: Captured) -> None:
    root = str(tmp_path / "set")
    drawn = ["data", "scenes", root, "--images", "4", "--val-images", "2", "--size", "48", "--noise", "0.1"]
    assert cli.main(drawn) == 0
    out, err = capsys.readouterr()
    assert root in out and "draw scenes: 8 of 8" in err
    recipe = json.loads((tmp_path / "set" / "scenes.json").read_text())
    assert recipe["difficulty"]["noise"] == 0.1 != recipe["difficulty"]["clutter"]
    assert len(open_dataset(root, "val")) == 2
    assert cli.main(["data", "check", root]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["test", "2"], ["train", "4"], ["val", "2"]]


def test_other_options_into_the_same_folder_are_refused(tmp_path: Path, capsys: Captured) -> None:
    root = str(tmp_path / "set")
    assert cli.main(["data", "scenes", root, "--images", "1", "--size", "48", "--format", "yolo"]) == 0
    assert cli.main(["data", "scenes", root, "--images", "1", "--size", "64"]) == 1
    assert "nothing is written over it" in capsys.readouterr().err
    assert cli.main(["data", "scenes", root, "--format", "pascal"]) == 2


def test_check_lists_what_is_wrong_and_says_so_in_its_exit_status(tmp_path: Path, capsys: Captured) -> None:
    root = make_voc(tmp_path)
    (root / "Annotations" / "b.xml").write_text("<annotation>")
    (root / "JPEGImages" / "a.jpg").unlink()
    assert cli.main(["data", "check", str(root), "--most", "1"]) == 1
    out = capsys.readouterr().out
    assert f"{root}/Annotations/b.xml:1" in out and "malformed annotation" in out and "... and 1 more" in out
    assert cli.main(["data", "check", str(root), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["problem_counts"] == {"missing image": 1, "malformed annotation": 1} and found["images"] == 0
    assert {problem["outcome"] for problem in found["problems"]} == {"image left out"}


def test_check_of_a_split_or_of_no_data_set(tmp_path: Path, capsys: Captured) -> None:
    root = make_voc(tmp_path)
    assert cli.main(["data", "check", str(root), "--split", "train"]) == 0
    assert cli.main(["data", "check", str(root), "--split", "test"]) == 1
    assert "there is no split 'test'" in capsys.readouterr().err
    assert cli.main(["data", "check", str(tmp_path / "Annotations")]) == 1
    assert "not recognised" in capsys.readouterr().err
