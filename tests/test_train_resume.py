"""A run that is killed goes on bit for bit: in stage 1, right at an update, after the freeze."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from effp_fx.data import write_scenes
from effp_fx.errors import DivergenceError, TrainingError
from effp_fx.report.run_report import EpochRow, Status
from effp_fx.train import Recipe, Task, checkpoint, train
from effp_fx.train.watch import Silent

SPEC = "effp:ssd_small?size=64&width=8"


class Ends(Silent):
    """Raises, or kills the process, when a step was taken."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.at, self.kill = step, kill

    def step(self, status: Status) -> None:
        if status.step != self.at:
            return
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt


def task(folder: Path, scenes: Path) -> Task:
    recipe = Recipe(epochs=4, batch_size=4, ema=0.9)
    session = {"updates": 4, "start": 0.25, "end": 0.75}
    return Task(SPEC, str(scenes), folder, recipe, target_flops=0.5, session=session, save_every=1, judge_every=4)


def main(folder: str, scenes: str, step: str) -> None:
    """Run as a script: the run that is killed after a step."""
    torch.set_num_threads(1)
    train(task(Path(folder), Path(scenes)), Ends(int(step), kill=True), resume=True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, images=16, val_images=4, test_images=0, size=64, most=3)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(scenes: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    found = train(task(whole, scenes))
    assert found is not None
    updates = [update.step for update in found.updates]
    assert updates == [4, 7, 9, 12] and found.steps == 16
    # Killed when a step is taken and not yet saved: it is taken again. Step 3 is in stage 1, 7 chooses the mask anew,
    # 14 comes after the freeze; each run goes on where the one before was killed.
    for step in (3, 7, 14):
        command = [sys.executable, __file__, str(cut), str(scenes), str(step)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        saved = checkpoint.read(cut / "last.safetensors")
        assert saved["step"] == step - 1
    again = train(task(cut, scenes), resume=True)
    assert again is not None
    assert [replace(row, seconds=0.0) for row in again.rows] == [replace(row, seconds=0.0) for row in found.rows]
    assert again.updates == found.updates and again.scores == found.scores
    one, two = (checkpoint.read(folder / "last.safetensors") for folder in (whole, cut))
    for part in ("model", "average"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items()), part
    assert str(one["optimizer"]) == str(two["optimizer"])
    assert (whole / "updates.csv").read_bytes() == (cut / "updates.csv").read_bytes()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(scenes: Path, tmp_path: Path) -> None:
    class Poisons(Silent):
        """Spoils the data after the third step."""

        def step(self, status: Status) -> None:
            if status.step == 3:
                for state in vars(run_of[0])["loop"].model.parameters():
                    state.data.fill_(float("nan"))

    from effp_fx.train import run as module

    run_of: list[module.Run] = []
    own = module.Run.train

    def noted(self: module.Run) -> None:
        run_of.append(self)
        own(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "train", noted)
        dense = replace(task(tmp_path, scenes), dense=True, target_flops=None, session={}, save_every=2)
        with pytest.raises(DivergenceError) as caught:
            train(dense, Poisons())
    assert "the last good checkpoint is" in str(caught.value) and caught.value.where == "backbone.stem.0"
    saved = checkpoint.read(tmp_path / "last.safetensors")
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["model"].values())


def test_a_folder_with_a_run_is_neither_overwritten_nor_resumed_by_another(scenes: Path, tmp_path: Path) -> None:
    dense = replace(task(tmp_path, scenes), dense=True, target_flops=None, session={})
    with pytest.raises(KeyboardInterrupt):
        train(dense, Ends(2))
    with pytest.raises(TrainingError, match="the folder holds a run already"):
        train(dense)
    other = replace(dense, recipe=replace(dense.recipe, lr=1e-4), seed=3)
    with pytest.raises(TrainingError, match="the checkpoint is of a run with another recipe and seed"):
        train(other, resume=True)
    assert checkpoint.read(tmp_path / "last.safetensors")["step"] == 1


TORCHRUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_train_resume import task
from effp_fx.train import train
train(task(Path(sys.argv[2]), Path(sys.argv[3])))
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_network(scenes: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    arguments = [str(script), str(Path(__file__).parent), str(tmp_path / "out"), str(scenes)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["steps"] == 8 and found["judged_images"] == 4  # half as many steps as one process takes
    assert found["map_difference"] <= 1e-6 and found["flops_after"] <= 0.5 * found["flops"]
    row: EpochRow = EpochRow(**found["rows"][-1])
    assert row.map == pytest.approx(found["scores"]["masked"]["map"], abs=1e-6)


if __name__ == "__main__":
    main(*sys.argv[1:])
