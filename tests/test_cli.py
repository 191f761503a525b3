"""The command line: what each command prints and writes, exit status 0, 1, 2 and 130, one clear line on failure."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest
import torch

import effp_fx
from effp_fx import cli, models, plan, store
from effp_fx.cli.arguments import shaped
from effp_fx.inputs import Example

# Interrupts reach a child of a shell's background job only if it asks for them again.
RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from effp_fx import cli; sys.exit(cli.main())"
)
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, expect: int = 0) -> None:
    assert cli.main(arguments) == expect


def prune_residual(*more: str) -> None:
    run("prune", "effp:residual", "--randomise", "--no-onnx", *more)


# --- trace ---


def test_trace_prints_the_table_and_keeps_progress_apart(capsys: Captured) -> None:
    run("trace", "effp:residual")
    out, err = capsys.readouterr()
    assert out.startswith("layer ") and "prunable: " in out and "slices" not in out
    assert re.search(r"^\[ +\d+\.\d s\] capture in eval mode$", err, re.MULTILINE)


def test_trace_channels_shows_the_slices(capsys: Captured) -> None:
    run("trace", "effp:residual", "--channels")
    assert "out   stem.0.weight[0] x1" in capsys.readouterr().out


def test_trace_json_is_json_and_nothing_else(capsys: Captured) -> None:
    run("trace", "effp:residual", "--json", "--graph", "g.svg")
    found = json.loads(capsys.readouterr().out)
    assert found["flops"] == 13_550_208 and found["files"] == {"group graph": "g.svg"}


@pytest.mark.parametrize("name,begin", [("g.svg", "<svg"), ("g.html", "<!doctype html>"), ("g.dot", "digraph")])
def test_trace_draws_the_group_graph(name: str, begin: str, capsys: Captured) -> None:
    run("trace", "effp:residual", "--graph", name)
    assert Path(name).read_text().startswith(begin)
    assert re.search(rf"^group graph +{name}$", capsys.readouterr().out, re.MULTILINE)


def test_trace_refuses_another_picture_before_it_does_anything(capsys: Captured) -> None:
    run("trace", "effp:residual", "--graph", "g.png", expect=1)
    assert "[" not in capsys.readouterr().err.split("effp-fx:")[0]


def test_a_groups_file_goes_out_is_edited_and_comes_back(capsys: Captured) -> None:
    run("trace", "effp:residual", "--emit", "groups.yaml")
    text = Path("groups.yaml").read_text()
    Path("groups.yaml").write_text(text.replace("  stem.0:\n", "  stem.0:\n    pin: true\n"))
    capsys.readouterr()
    run("trace", "effp:residual", "--groups", "groups.yaml", "--json")
    assert "stem.0" not in [group["name"] for group in json.loads(capsys.readouterr().out)["groups"]]


def test_trace_ignore_freezes_with_that_reason(capsys: Captured) -> None:
    run("trace", "effp:residual", "--ignore", "stem*", "--ignore", "shortcut.*")
    assert "ignored at the user's wish" in capsys.readouterr().out


def test_trace_input_sets_the_size_of_the_images(capsys: Captured) -> None:
    flops = []
    for shape in ("2x3x16x16", "2x3x32x32"):
        run("trace", "effp:residual", "--input", shape, "--json")
        flops.append(json.loads(capsys.readouterr().out)["flops"])
    assert 3.9 < flops[1] / flops[0] <= 4


# --- prune and what belongs to it ---


def test_prune_writes_the_model_its_plan_and_its_report(capsys: Captured) -> None:
    prune_residual("-o", "some/where", "--seed", "3")
    out = capsys.readouterr().out
    folder = Path("some/where")
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "report.json", "small.safetensors"]
    for name in ("small.safetensors", "plan.json", "report.json"):
        assert str(folder / name) in out
    assert "has to be won back by training" in out
    small = effp_fx.load(folder / "small.safetensors")
    assert plan.plan_of(small) == plan.Plan.from_json((folder / "plan.json").read_text())
    found = json.loads((folder / "report.json").read_text())
    assert found["flops_after"] <= 0.5 * found["flops_before"] and found["verification"]["equal"]
    assert found["files"]["model"] == "some/where/small.safetensors"


def test_the_same_command_writes_the_same_model_another_seed_another(capsys: Captured) -> None:
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        prune_residual("-o", folder, "--seed", seed)
    one, two, other = (effp_fx.load(Path(folder, "small.safetensors")) for folder in "abc")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert plan.plan_of(one) == plan.plan_of(two)
    assert not torch.equal(one.get_parameter("head.2.weight")[:, 0], other.get_parameter("head.2.weight")[:, 0])


def test_prune_takes_both_targets_rounding_and_importance(capsys: Captured) -> None:
    options = ["--target-flops", "0.7", "--target-params", "0.6", "--round-to", "4", "--importance", "l2", "--json"]
    prune_residual(*options)
    found = json.loads(capsys.readouterr().out)
    assert found["flops_after"] <= 0.7 * found["flops_before"]
    assert found["params_after"] <= 0.6 * found["params_before"]
    assert all(layer["channels_after"] % 4 == 0 for layer in found["layers"] if layer["groups"])
    assert found == json.loads(Path("out/report.json").read_text())


def test_with_only_a_parameter_target_flops_are_free(capsys: Captured) -> None:
    prune_residual("--target-params", "0.9", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["flops_after"] > 0.5 * found["flops_before"]


def test_prune_exports_a_file_that_onnx_runtime_runs(capsys: Captured) -> None:
    run("prune", "effp:residual", "--randomise")
    out = capsys.readouterr().out
    assert "ONNX Runtime against PyTorch" in out and "out/small.onnx" in out
    small = effp_fx.load("out/small.safetensors")
    images = models.example_for(small).args[0]
    session = onnxruntime.InferenceSession("out/small.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), small(images), rtol=1e-4, atol=1e-5)
    assert json.loads(Path("out/report.json").read_text())["onnx"]["opset"] == 17


def test_an_onnx_file_of_an_earlier_run_is_called_that(capsys: Captured) -> None:
    Path("out").mkdir()
    Path("out/small.onnx").write_bytes(b"old")
    prune_residual()
    assert re.search(r"^ONNX, of an earlier run +out/small\.onnx$", capsys.readouterr().out, re.MULTILINE)


def test_a_pruned_file_can_be_traced_and_pruned_again(capsys: Captured) -> None:
    prune_residual("-o", "first")
    run("prune", "first/small.safetensors", "-o", "second", "--no-onnx")
    before, after = (json.loads(Path(folder, "report.json").read_text()) for folder in ("first", "second"))
    assert after["flops_before"] == before["flops_after"]
    assert after["flops_after"] <= 0.5 * before["flops_after"]
    twice = effp_fx.load("second/small.safetensors")
    assert sum(tensor.numel() for tensor in twice.parameters()) == after["params_after"]


def test_an_unreachable_target_fails_with_the_smallest_and_writes_nothing(capsys: Captured) -> None:
    prune_status = cli.main(["prune", "effp:residual", "--target-flops", "0.000001", "--no-onnx"])
    err = capsys.readouterr().err
    assert prune_status == 1 and "the smallest reachable is" in err and "Traceback" not in err
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize("source", ["plan.json", "small.safetensors"])
def test_compact_cuts_the_models_own_weights(source: str, capsys: Captured) -> None:
    prune_residual()
    run("compact", "effp:residual", "--plan", f"out/{source}", "-o", "again.safetensors")
    assert re.search(r"^stem\.0 +16 +-> \d+ ", capsys.readouterr().out, re.MULTILINE)
    small, again = effp_fx.load("out/small.safetensors"), effp_fx.load("again.safetensors")
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (small, again)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(small.get_parameter("stem.1.weight"), again.get_parameter("stem.1.weight")), "not randomised"


def test_compact_refuses_a_plan_for_another_model(capsys: Captured) -> None:
    prune_residual()
    run("compact", "effp:chain", "--plan", "out/plan.json", "-o", "c.safetensors", expect=1)
    assert "the plan is for another model" in capsys.readouterr().err
    assert not Path("c.safetensors").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"tensors": 3}'])
def test_compact_says_which_file_is_no_plan(text: str, capsys: Captured) -> None:
    Path("p.json").write_text(text)
    run("compact", "effp:chain", "--plan", "p.json", expect=1)
    assert "p.json" in capsys.readouterr().err


def test_export_writes_a_dense_or_a_compact_model(capsys: Captured) -> None:
    prune_residual()
    sizes = []
    for source in ("effp:residual", "out/small.safetensors"):
        capsys.readouterr()
        run("export", source, "-o", "deep/m.onnx", "--json", "--dynamic-batch", "--opset", "18")
        found = json.loads(capsys.readouterr().out)
        assert found["opset"] == 18 and isinstance(found["inputs"][0]["shape"][0], str)
        assert max(found["max_relative_error"].values()) < 1e-4
        sizes.append(Path("deep/m.onnx").stat().st_size)
    assert sizes[1] < sizes[0]


def test_bench_takes_dense_and_compact_in_turns(capsys: Captured) -> None:
    run("prune", "effp:residual", "--randomise", "-o", "out")
    run("export", "effp:residual", "-o", "dense.onnx")
    capsys.readouterr()
    compared = ["--against", "out/small.safetensors", "--onnx", "dense.onnx", "--onnx", "out/small.onnx"]
    run("bench", "effp:residual", *compared, "--rounds", "3", "--json")
    torch_part, onnx_part = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in torch_part["networks"]] == ["effp:residual", "out/small.safetensors"]
    assert [row["name"] for row in onnx_part["networks"]] == ["dense.onnx", "out/small.onnx"]
    assert all(
        len(row["seconds"]) == 3 and row["ratio"] > 0 for part in (torch_part, onnx_part) for row in part["networks"]
    )
    run("bench", "--onnx", "dense.onnx", "--rounds", "1")
    assert "ONNX Runtime" in capsys.readouterr().out


def test_the_demo_shows_the_whole_way(capsys: Captured) -> None:
    run("demo", "--no-train", "--model", "effp:shared_head", "-o", "shown")
    out = capsys.readouterr().out
    for part in ("frozen and why", "of the costliest layer", "verification", "ONNX Runtime against PyTorch", "random"):
        assert part in out
    assert sorted(path.name for path in Path("shown").iterdir()) == [
        "plan.json",
        "report.json",
        "small.onnx",
        "small.safetensors",
    ]


@pytest.mark.slow
def test_the_demo_prunes_ssd300_to_half_its_flops(capsys: Captured) -> None:
    run("demo", "--no-train", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["flops_after"] <= 0.5 * found["flops_before"] < found["flops_after"] + found["one_channel_flops"]
    assert found["verification"]["equal"] and found["verification"]["max_relative_error"] < 1e-9
    assert max(found["onnx"]["max_relative_error"].values()) < 1e-3


# --- models of the user's own ---


FACTORY = """
import torch
from torch import nn

def build():
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1))
    return net, torch.rand(2, 4, 16)
"""


def test_a_factory_in_a_file_brings_its_own_inputs(capsys: Captured) -> None:
    Path("mine.py").write_text(FACTORY)
    run("trace", "mine.py:build", "--json")
    assert json.loads(capsys.readouterr().out)["flops"] == 2 * 2 * (4 * 8 * 3 * 14 + 8 * 2 * 14)


def test_images_are_shaped_as_the_model_takes_them() -> None:
    model = models.build("effp:chain").model
    as_list = shaped(Example(([torch.rand(3, 8, 8)],)), "2x3x4x6", model)
    assert [tuple(image.shape) for image in as_list.args[0]] == [(3, 4, 6)] * 2
    as_tensor = shaped(Example((torch.rand(1, 3, 8, 8), "more")), "2x3x4x6", model)
    assert as_tensor.args[0].shape == (2, 3, 4, 6) and as_tensor.args[1] == "more"
    by_name = shaped(Example((), {"n": 3, "pixels": torch.rand(1, 3, 8, 8)}), "2x3x4x6", model)
    assert by_name.kwargs["pixels"].shape == (2, 3, 4, 6) and by_name.kwargs["n"] == 3


# --- failure ---


USAGE = {
    "no command": [],
    "no such command": ["prun", "effp:chain"],
    "no model": ["trace"],
    "no such option": ["trace", "effp:chain", "--nope"],
    "a number that is none": ["prune", "effp:chain", "--target-flops", "half"],
    "a shape that is none": ["trace", "effp:chain", "--input", "3,16,16"],
    "too few dimensions": ["trace", "effp:chain", "--input", "3x16x16"],
    "rounding to nothing": ["prune", "effp:chain", "--round-to", "0"],
    "nothing to time": ["bench"],
    "nothing to compare with": ["bench", "--against", "x.safetensors"],
    "no plan": ["compact", "effp:chain"],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_status_2_and_one_line(arguments: list[str], capsys: Captured) -> None:
    run(*arguments, expect=2)
    out, err = capsys.readouterr()
    last = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(last) == 1 and last[0].startswith("effp-fx: ") and "--help)" in last[0]
    assert not out


FAILURES = {
    "an unknown family": (["trace", "nope:x"], "neither a model family nor a Python module"),
    "an unknown model": (["trace", "effp:residul"], "did you mean residual"),
    "no family": (["trace", "ssd300_vgg16"], "is not a model spec"),
    "a file that is not there": (["trace", "gone.safetensors"], "gone.safetensors"),
    "a target below nothing": (["prune", "effp:chain", "--target-flops", "-1"], "above 0"),
    "an unknown importance": (["prune", "effp:chain", "--importance", "magic"], "magic"),
    "a name that is not in the model": (["trace", "effp:chain", "--ignore", "nothing"], "not in the model"),
    "a groups file that is not there": (["trace", "effp:chain", "--groups", "no.yaml"], "no.yaml"),
    "a plan that is not there": (["compact", "effp:chain", "--plan", "no.json"], "no.json"),
    "an ONNX file that is not there": (["bench", "--onnx", "no.onnx"], "no.onnx"),
    "a folder below a file": (["prune", "effp:chain", "-o", "file/out"], "output folder"),
    "a picture in no folder": (["trace", "effp:chain", "--graph", "no/g.svg"], "No such file"),
}


@pytest.mark.parametrize("arguments,said", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_status_1_and_says_what_without_a_traceback(
    arguments: list[str], said: str, capsys: Captured
) -> None:
    Path("file").write_text("")
    run(*arguments, expect=1)
    out, err = capsys.readouterr()
    assert "effp-fx: " in err and said in err and "Traceback" not in err
    assert not out


@pytest.mark.parametrize("place", [0, 1, 2])
def test_traceback_shows_where_wherever_it_stands(place: int, capsys: Captured) -> None:
    arguments = ["trace", "effp:nope"]
    run(*arguments[:place], "--traceback", *arguments[place:], expect=1)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_what_nobody_foresaw_is_status_1_in_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("effp_fx.api.trace", broken)
    run("trace", "effp:chain", expect=1)
    assert "effp-fx: unforeseen ZeroDivisionError: two lines (--traceback shows where)\n" in capsys.readouterr().err


def test_a_failing_export_says_what_is_already_there(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise effp_fx.errors.ExportError("no way to write it")

    monkeypatch.setattr("effp_fx.export.export_onnx", broken)
    run("prune", "effp:residual", expect=1)
    assert "already written: out/small.safetensors, out/plan.json" in capsys.readouterr().err


def test_interrupted_between_two_steps_is_status_130(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "save", interrupt)
    prune_status = cli.main(["prune", "effp:residual", "--no-onnx"])
    assert prune_status == 130 and capsys.readouterr().err.endswith("\neffp-fx: interrupted\n")
    assert not list(Path("out").iterdir())


# --- as a process ---


def test_control_c_ends_with_130_one_line_and_no_files_and_no_folder() -> None:
    command = [sys.executable, "-c", RUN, "prune", "torchvision:ssd300_vgg16", "--randomise"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr
    lines = [child.stderr.readline() for _ in range(2)]  # it is at work
    assert "capture" in lines[1], lines
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    said = [line for line in err.splitlines() if not line.startswith("[")]
    assert (child.returncode, out, said) == (130, "", ["effp-fx: interrupted"])
    assert not Path("out").exists()


def test_a_reader_that_stops_reading_gets_no_traceback() -> None:
    command = f"{sys.executable} -c {RUN!r} trace effp:residual --channels --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == '{\n  "effp_' and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_the_installed_command_says_its_version_and_helps() -> None:
    script = Path(sys.executable).with_name("effp-fx")
    for arguments, said in ((["--version"], f"effp-fx {effp_fx.__version__}"), (["--help"], "prune")):
        done = subprocess.run([script, *arguments], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0 and said in done.stdout


@pytest.mark.parametrize("command", ["trace", "prune", "compact", "export", "bench", "demo", "train", "eval"])
def test_every_command_helps_and_prints_json(command: str, capsys: Captured) -> None:
    run(command, "--help")
    assert "--json" in capsys.readouterr().out
