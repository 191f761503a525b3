"""A session in Ultralytics' own training: counted steps, compact checkpoints that the plain tool takes, resuming."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import effp_fx
from effp_fx.errors import SessionError
from effp_fx.integrations.ultralytics import Pruning, attach, prune_trainer
from effp_fx.integrations.ultralytics.rebuild import configuration
from effp_fx.integrations.ultralytics.steps import Loop
from tests import plain_yolo, yolo_run

ultralytics = pytest.importorskip("ultralytics")
pytestmark = pytest.mark.ultralytics


class Broken(Exception):
    """What stands for the power cut."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return yolo_run.scenes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return yolo_run.narrow(tmp_path_factory.mktemp("yaml"))


@pytest.fixture(scope="module")
def trained(narrow: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A pruned run, and the dense checkpoint with the mask, as it was before it was cut."""
    folder = tmp_path_factory.mktemp("run")
    yolo = ultralytics.YOLO(narrow)
    pruning = prune_trainer(yolo, target_flops=0.5, target_params=0.6)

    def keep(trainer: Any) -> None:
        (folder / "masked.pt").write_bytes(trainer.last.read_bytes())

    yolo.add_callback("on_model_save", keep)
    yolo.train(**yolo_run.arguments(data, folder, "run", close_mosaic=1))
    return SimpleNamespace(yolo=yolo, pruning=pruning, folder=folder, masked=folder / "masked.pt")


def broken_at(yolo: Any, event: str, epoch: int) -> None:
    def cut(trainer: Any) -> None:
        if trainer.epoch == epoch:
            raise Broken

    yolo.add_callback(event, cut)


@pytest.mark.slow
def test_training_meets_both_targets_in_the_steps_that_were_counted(trained: SimpleNamespace) -> None:
    pruning: Pruning = trained.pruning
    assert pruning.session is not None
    assert pruning.flops <= 0.5 and pruning.params <= 0.6
    assert pruning.session.step == pruning.session.schedule.total_steps
    dense = sum(value.numel() for value in ultralytics.YOLO(str(trained.masked)).model.parameters())
    small = sum(value.numel() for value in trained.yolo.model.parameters())
    assert small == pytest.approx(pruning.params * dense) and type(trained.yolo.model).__name__ == "DetectionModel"
    assert "train" not in vars(trained.yolo)  # the next train() is Ultralytics' own


@pytest.mark.slow
def test_the_compact_checkpoint_computes_what_the_masked_one_does(trained: SimpleNamespace, data: str) -> None:
    masked, small = (ultralytics.YOLO(str(path)) for path in (trained.masked, trained.pruning.last))
    image = torch.rand(2, 3, 64, 64)
    one, two = (yolo.model.eval()(image)[0] for yolo in (masked, small))
    assert torch.allclose(one, two, rtol=1e-4, atol=1e-3)
    off = [value for name, value in masked.model.named_parameters() if name.endswith("bn.weight")]
    assert sum(int((value == 0).sum()) for value in off) > 50
    quiet: dict[str, Any] = {"data": data, "imgsz": 64, "workers": 0, "plots": False, "verbose": False}
    judged = [yolo.val(project=str(trained.folder), **quiet).results_dict for yolo in (masked, small)]
    assert judged[0] == pytest.approx(judged[1])


@pytest.mark.slow
def test_plain_ultralytics_does_all_it_does_with_the_compact_checkpoint(
    trained: SimpleNamespace, data: str, tmp_path: Path
) -> None:
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(trained.pruning.best))
    assert foreign and not [name for name in foreign if name.startswith("effp_fx")]
    done = subprocess.run(
        [sys.executable, plain_yolo.__file__, str(trained.pruning.best), data, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weights"] == sum(value.numel() for value in trained.yolo.model.parameters())
    assert found["predicted"] == 1 and Path(found["onnx"]).is_file()
    assert found["same sizes after train"] and found["same sizes in its file"] and found["fused"]
    assert found["largest change by a rate of zero"] < 1  # pixels; statistics of the norms and half precision
    assert not found["effp_fx"]
    here = trained.yolo.val(data=data, imgsz=64, batch=4, workers=0, plots=False, project=str(tmp_path), verbose=False)
    assert found["val"] == pytest.approx(here.results_dict)


def test_blocks_split_alike_in_their_own_export(narrow: str) -> None:
    """Ultralytics exports C2f by a size that forward does not read."""
    small = effp_fx.prune(ultralytics.YOLO(narrow), target_flops=0.5).model
    blocks = [module for module in small.modules() if hasattr(module, "forward_split")]
    assert len(blocks) > 3 and len({block.c for block in blocks}) > 2
    for block in blocks:
        x = torch.rand(1, block.cv1.conv.in_channels, 8, 8)
        torch.testing.assert_close(block.forward_split(x), block(x))


@pytest.mark.slow
def test_a_run_that_broke_off_is_resumed_with_its_mask(narrow: str, data: str, tmp_path: Path) -> None:
    arguments = yolo_run.arguments(data, tmp_path, "run", epochs=4)
    yolo = ultralytics.YOLO(narrow)
    first = prune_trainer(yolo, target_flops=0.5, start=0.1, end=0.8, updates=4)
    broken_at(yolo, "on_fit_epoch_end", 1)
    with pytest.raises(Broken):
        yolo.train(**arguments)
    assert first.session is not None and first.session.history and not first.session.frozen
    last = tmp_path / "run" / "weights" / "last.pt"

    other = ultralytics.YOLO(str(last))
    prune_trainer(other, target_flops=0.4, start=0.1, end=0.8, updates=4)
    with pytest.raises(SessionError, match="another targets"):
        other.train(resume=True)

    yolo = ultralytics.YOLO(str(last))
    second = prune_trainer(yolo, target_flops=0.5, start=0.1, end=0.8, updates=4)
    taken: list[tuple[int, Any]] = []
    yolo.add_callback("on_train_start", lambda _: taken.append((second.session.step, second.session.keep)))
    yolo.train(resume=True)
    assert second.session is not None and second.flops <= 0.5
    assert taken[0][0] == first.session.step and np.array_equal(taken[0][1], first.session.keep)
    assert second.session.history[: len(first.session.history)] == first.session.history
    assert effp_fx.plan_of(ultralytics.YOLO(str(second.last)).model).groups


@pytest.mark.slow
def test_only_epochs_with_the_final_mask_count_for_the_best_and_for_patience(
    narrow: str, data: str, tmp_path: Path
) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Falling(DetectionTrainer):  # type: ignore[misc, unused-ignore]
        def validate(self) -> tuple[Any, float]:
            best, (metrics, _) = self.best_fitness, super().validate()
            fitness = 1 / (1 + self.epoch)
            self.best_fitness = fitness if best is None else max(best, fitness)
            return metrics, fitness

    yolo = ultralytics.YOLO(narrow)
    pruning = prune_trainer(yolo, target_flops=0.5, end=0.6, updates=2)
    fixed: dict[int, bool] = {}
    yolo.add_callback("on_model_save", lambda trainer: fixed.update({trainer.epoch: pruning.session.frozen}))
    yolo.train(trainer=Falling, **yolo_run.arguments(data, tmp_path, "run", epochs=5, patience=1))
    first = min(epoch for epoch, frozen in fixed.items() if frozen)
    assert first > 0 and max(fixed) == first + 1 < 4  # patience did not end it before, and did one epoch after
    assert pruning.session is not None and pruning.session.step < pruning.session.schedule.total_steps
    best = torch.load(pruning.best or "", weights_only=False)
    assert best["train_metrics"]["fitness"] == 1 / (1 + first)


@pytest.mark.slow
def test_a_checkpoint_without_a_session_is_not_resumed(narrow: str, data: str, tmp_path: Path) -> None:
    yolo = ultralytics.YOLO(narrow)
    broken_at(yolo, "on_fit_epoch_end", 0)
    with pytest.raises(Broken):
        yolo.train(**yolo_run.arguments(data, tmp_path, "plain", val=False))
    yolo = ultralytics.YOLO(str(tmp_path / "plain" / "weights" / "last.pt"))
    prune_trainer(yolo)
    with pytest.raises(SessionError, match="holds no state of a session") as caught:
        yolo.train(resume=True)
    assert "resume it without prune_trainer" in str(caught.value)


@pytest.mark.parametrize(
    ("event", "deed", "said", "mend"),
    [
        ("on_train_start", "trainer.ema = None", "moving average", "leave trainer.ema"),
        (
            "on_train_start",
            "trainer.optimizer = SGD([dict(group) for group in trainer.optimizer.param_groups])",
            "was rebuilt",
            "in place",
        ),
        ("on_train_epoch_end", "trainer.stop = True", "before the mask was fixed", "is dense"),
    ],
)
@pytest.mark.slow
def test_what_a_callback_spoils_is_said(
    narrow: str, data: str, tmp_path: Path, event: str, deed: str, said: str, mend: str
) -> None:
    yolo = ultralytics.YOLO(narrow)
    prune_trainer(yolo, target_flops=0.5, start=0.8, end=1.0, updates=1)
    spaces = {"SGD": torch.optim.SGD}
    yolo.add_callback(event, lambda trainer: exec(deed, spaces, {"trainer": trainer}))
    with pytest.raises(SessionError, match=said) as caught:
        yolo.train(**yolo_run.arguments(data, tmp_path, "run"))
    assert mend in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": [0, 1]}, "know nothing of the session"),
        ({"device": "0,1"}, "know nothing of the session"),
        ({"time": 0.5}, "is not known before it ends"),
        ({"data": ["a.yaml", "b.yaml"]}, "belongs to one"),
        ({"distill_model": "yolov8m.pt"}, "a teacher"),
        ({"quantize": 8}, "simulated INT8"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_before_anything_runs(
    narrow: str, tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    yolo = ultralytics.YOLO(narrow)
    prune_trainer(yolo)
    with pytest.raises(SessionError, match=said) as caught:
        yolo.train(**{"data": "nowhere.yaml", "project": str(tmp_path), **asked})
    assert "to mend it" in str(caught.value) and not list(tmp_path.iterdir())


def test_wrong_objects_and_options_are_refused(narrow: str) -> None:
    yolo = ultralytics.YOLO(narrow)
    for wrong in ("yolov8n.yaml", yolo.model, SimpleNamespace(model=yolo.model)):
        with pytest.raises(SessionError, match="takes a YOLO object"):
            prune_trainer(wrong)
    with pytest.raises(SessionError, match="does not take update\n") as caught:
        prune_trainer(yolo, update=3)
    assert "did you mean updates" in str(caught.value)
    with pytest.raises(SessionError, match="does not take total_steps"):
        prune_trainer(yolo, total_steps=3)
    with pytest.raises(SessionError, match="drift must be"):
        prune_trainer(yolo, drift=-1)
    assert "train" not in vars(yolo)
    prune_trainer(yolo)
    with pytest.raises(SessionError, match="called for this object already"):
        prune_trainer(yolo)
    with pytest.raises(SessionError, match="training has not begun"):
        _ = prune_trainer(ultralytics.YOLO(narrow)).flops
    begun = ultralytics.YOLO(narrow)
    begun.trainer = SimpleNamespace(optimizer=object(), stop=False)
    with pytest.raises(SessionError, match="training of this object has begun"):
        prune_trainer(begun)


def test_versions_are_compared_as_versions(monkeypatch: pytest.MonkeyPatch, narrow: str) -> None:
    yolo = ultralytics.YOLO(narrow)
    for version, taken in (("8.2.103", False), ("8.10.0", True), ("10.0", True), ("8.3.0", True), ("7.9", False)):
        monkeypatch.setattr(ultralytics, "__version__", version)
        vars(yolo).pop("train", None)
        if taken:
            prune_trainer(yolo)
            continue
        with pytest.raises(SessionError, match="is not supported") as caught:
            prune_trainer(yolo)
        assert version in str(caught.value) and str(attach.OLDEST) in str(caught.value)


def test_a_trainer_of_another_make_is_refused(narrow: str) -> None:
    yolo = ultralytics.YOLO(narrow)
    prune_trainer(yolo)
    with pytest.raises(SessionError, match="no resume_training, optimizer_step"):
        yolo.train(trainer=SimpleNamespace, data="nowhere.yaml")


def loop_of_ultralytics(loop: Loop, first: int) -> int:
    """The rule of its trainer, batch by batch."""
    accumulate, last, steps = loop.accumulate, -1, 0
    for epoch in range(first, loop.epochs):
        for i in range(loop.batches):
            ni = i + loop.batches * epoch
            if loop.warmup and ni <= loop.warmup:
                accumulate = max(1, int(np.interp(ni, [0, loop.warmup], [1, loop.accumulate]).round()))
            if ni - last >= accumulate:
                last, steps = ni, steps + 1
    return steps


@pytest.mark.parametrize("warmup", [0, 1, 7, 30, 1000])
def test_steps_are_counted_as_the_loop_makes_them(warmup: int) -> None:
    for batches in (1, 4, 13):
        for accumulate in (1, 2, 5, 16):
            loop = Loop(batches, epochs=6, accumulate=accumulate, warmup=warmup)
            for first in (0, 1, 5):
                # The loop has just begun: whatever it had accumulated before is what it begins with.
                whole = replace(loop, warmup=min(warmup, 6 * batches))
                assert whole.steps(first) == loop_of_ultralytics(whole, first), (whole, first)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov10n.yaml", "yolov8n-cls.yaml"])
def test_ultralytics_builds_a_cut_network_from_its_configuration(name: str, tmp_path: Path) -> None:
    dense = effp_fx.models.build(f"ultralytics:{yolo_run.narrow(tmp_path, name)}").model
    small: Any = effp_fx.prune(effp_fx.models.randomise(dense), target_flops=0.5)
    made = configuration(small)
    assert made is not None
    again = type(small)(made, nc=made["nc"], verbose=False)
    again.load(small, verbose=False)
    image = torch.rand(1, 3, 64, 64)
    one, two = (model.eval()(image) for model in (small, again))
    assert torch.equal(one[0], two[0])
    assert sum(value.numel() for value in again.parameters()) < sum(value.numel() for value in dense.parameters())


def test_a_data_set_that_is_not_there_is_refused_before_anything_is_written(
    narrow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from effp_fx.cli import main

    out = tmp_path / "out"
    assert main(["prune", narrow, "--data", str(tmp_path / "data.yaml"), "--epochs", "2", "-o", str(out)]) == 1
    assert "there is no such data set" in capsys.readouterr().err
    assert not list(out.iterdir())  # and the process drops it when it ends


@pytest.mark.slow
def test_the_command_line_trains_and_prunes(
    narrow: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from effp_fx.cli import main

    assert main(["prune", narrow, "--data", data]) == 2 and "--epochs" in capsys.readouterr().err
    assert main(["prune", "effp:ssd_small", "--data", data, "--epochs", "2"]) == 1
    assert "ultralytics has no model" in capsys.readouterr().err
    plain = yolo_run.arguments(data, tmp_path, "out")
    settings = [f"--set={name}={plain[name]}" for name in ("imgsz", "batch", "nbs", "optimizer", "workers", "plots")]
    out = tmp_path / "out"
    options = ["--target-flops", "0.5", "-o", str(out), "--json", *settings]
    assert main(["prune", f"ultralytics:{narrow}", "--data", data, "--epochs", "2", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flops"] <= 0.5 and found["metrics"] and Path(found["best"]) == out.resolve() / "weights" / "best.pt"
    assert effp_fx.plan_of(effp_fx.models.build(f"ultralytics:{found['best']}").model)
