"""EFFPCallback under Lightning's own Trainer: attaches, resumes bit for bit, and refuses what would go wrong later."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from effp_fx import Session, plan_of, verify
from effp_fx.errors import SessionError
from tests.session_run import UPDATES, batch, held, net, sgd
from tests.test_session_resume import adam, same

lightning = pytest.importorskip("lightning.pytorch")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
EFFPCallback = pytest.importorskip("effp_fx.integrations.lightning").EFFPCallback
LightningModule, Trainer = lightning.LightningModule, lightning.Trainer

pytestmark = [
    pytest.mark.lightning,
    # Lightning's own advice about loaders, loggers and GPUs, and what it still uses of torch.
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.rank_zero.LightningDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]

BATCHES, EPOCHS = 4, 3
Make = Callable[[nn.Module], Any]


class Classifier(LightningModule):
    """As a user writes it: a network, a loss, an optimizer."""

    def __init__(self, network: nn.Module | None = None, make: Make = sgd) -> None:
        super().__init__()
        self.network = net("silu") if network is None else network
        self.make = make

    def training_step(self, images_and_labels: list[Tensor], _: int) -> Tensor:
        images, labels = images_and_labels
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> Any:
        return self.make(self.network)


def loader() -> DataLoader[Any]:
    batches = [batch(step) for step in range(BATCHES)]
    return DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True))), batch_size=4)


def trainer(folder: Path, *others: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    keep = callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    return Trainer(callbacks=[*others, keep], **{"max_epochs": EPOCHS, **quiet, **options})


def callback(**options: Any) -> EFFPCallback:
    return EFFPCallback(0.5, 0.5, **{"example_inputs": batch(0, 2)[0], **UPDATES, **options})


def fitted(folder: Path, module: LightningModule | None = None, path: Any = None, **options: Any) -> Any:
    """(module, callback) after fit; `options` with trainer_ before them are the trainer's."""
    own = {key.removeprefix("trainer_"): options.pop(key) for key in list(options) if key.startswith("trainer_")}
    module, effp = Classifier() if module is None else module, callback(**options)
    trainer(folder, effp, **own).fit(module, loader(), ckpt_path=path, weights_only=True if path else None)
    return module, effp


def session_of(effp: EFFPCallback) -> Session:
    assert effp.session is not None
    return effp.session


def test_the_compact_network_meets_its_targets_and_is_the_masked_one(tmp_path: Path) -> None:
    module, effp = fitted(tmp_path)
    session = session_of(effp)
    assert session.step == session.schedule.total_steps == BATCHES * EPOCHS
    assert not held(session)
    small = effp.compact()
    assert type(small) is type(module.network)
    assert session.flops <= 0.5 and session.params <= 0.5
    assert plan_of(small) and verify(session.masked(module.network), small, batch(3)[0]).equal


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_run_resumes_bit_for_bit_from_each_of_its_checkpoints(make: Make, tmp_path: Path) -> None:
    module, effp = fitted(tmp_path, Classifier(make=make))
    wanted = session_of(effp).state_dict()
    assert any(update.regrown for update in session_of(effp).history), "nothing came back, which proves little"
    for epoch in range(EPOCHS - 1):
        again, other = fitted(tmp_path / "again", Classifier(make=make), tmp_path / f"epoch={epoch}.ckpt")
        assert same(other.session.state_dict(), wanted) and same(again.state_dict(), module.state_dict()), epoch


def test_accumulated_gradients_make_one_step(tmp_path: Path) -> None:
    _, effp = fitted(tmp_path, trainer_accumulate_grad_batches=2, updates=2)
    assert session_of(effp).step == session_of(effp).schedule.total_steps == BATCHES * EPOCHS // 2
    effp.compact()


def test_bf16_mixed_precision_and_clipping(tmp_path: Path) -> None:
    module, effp = fitted(tmp_path, trainer_precision="bf16-mixed", trainer_gradient_clip_val=1.0)
    assert not held(session_of(effp)) and next(effp.compact().parameters()).dtype == torch.float32
    assert all(value.isfinite().all() for value in module.parameters())


@pytest.mark.parametrize("compile_all", [False, True])
def test_a_compiled_network_is_seen_through(tmp_path: Path, compile_all: bool) -> None:
    network = net("silu")
    module: Any = Classifier(network if compile_all else torch.compile(network, backend="eager"))
    _, effp = fitted(tmp_path, torch.compile(module, backend="eager") if compile_all else module)
    assert type(effp.compact()) is type(network)


class Parts(Classifier):
    """Its layers are its own attributes, and it has a forward: it is the network itself."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), lambda _: sgd(self))
        whole: Any = net("silu")
        self.body, self.head = whole.body, whole.head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))

    def training_step(self, images_and_labels: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(images_and_labels[0]), images_and_labels[1])


def test_a_module_that_is_the_network_itself(tmp_path: Path) -> None:
    module, effp = fitted(tmp_path, Parts())
    small = effp.compact()
    assert type(small) is Parts and list(small.state_dict()) == list(module.state_dict())
    assert session_of(effp).flops <= 0.5


def test_a_moving_average_is_asked_for_by_name(tmp_path: Path) -> None:
    """Lightning puts the average into the module when training ends: what is off is then not quite zero."""
    module, effp = Classifier(), callback()
    average = callbacks.WeightAveraging(device=None, use_buffers=True)
    trainer(tmp_path, effp, average).fit(module, loader())
    with pytest.raises(SessionError) as caught:
        effp.compact()
    assert "the weights were replaced after the last step" in str(caught.value)
    assert "callback.compact(its_module)" in str(caught.value)
    small = effp.compact(module.network)
    assert verify(session_of(effp).masked(module.network), small, batch(3)[0]).equal


DDP = """
import os, sys, torch
from pathlib import Path
from lightning.pytorch.strategies import DDPStrategy
from tests.test_lightning import fitted
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
torch.set_num_threads(1)
end = sys.argv[2] if len(sys.argv) > 2 else None
gloo = {"trainer_devices": 2, "trainer_strategy": DDPStrategy(process_group_backend="gloo")}
module, effp = fitted(folder, path=end, updates=2, **gloo)
state = {"keep": torch.from_numpy(effp.session.keep), "weights": module.state_dict(), "steps": effp.session.step}
torch.save(state | {"compact": [tuple(value.shape) for value in effp.compact().parameters()]}, folder / f"rank{rank}")
"""


@pytest.mark.long
def test_two_processes_choose_the_same_and_resume(tmp_path: Path) -> None:
    def ranks(*more: str) -> list[Any]:
        script = tmp_path / "script.py"
        script.write_text(DDP)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
        root = Path(__file__).parents[1]
        env = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([*command, script, tmp_path, *more], cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]

    one, two = ranks()
    assert one["steps"] == BATCHES * EPOCHS // 2 and not one["keep"].all()
    parameters = dict(net("silu").named_parameters())
    assert all(torch.equal(one["weights"][f"network.{name}"], two["weights"][f"network.{name}"]) for name in parameters)
    assert torch.equal(one["keep"], two["keep"]) and one["compact"] == two["compact"]
    again, _ = ranks(str(tmp_path / "epoch=1.ckpt"))
    assert same(again, one)


def several(model: nn.Module) -> list[Any]:
    return [sgd(model), torch.optim.Adam(model.parameters())]


class Manual(Classifier):
    """Steps by itself, and has a second optimizer that never does."""

    def __init__(self, make: Make = several) -> None:
        super().__init__(make=make)
        self.automatic_optimization = False

    def training_step(self, images_and_labels: list[Tensor], index: int) -> Any:
        optimizers: Any = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        optimizer.zero_grad()
        self.manual_backward(super().training_step(images_and_labels, index))
        optimizer.step()


def test_of_several_optimizers_one_is_named(tmp_path: Path) -> None:
    _, effp = fitted(tmp_path, Manual(), optimizer=0, total_steps=BATCHES * EPOCHS)
    assert session_of(effp).step == BATCHES * EPOCHS and effp.compact() is not None


class Nothing(Classifier):
    def configure_optimizers(self) -> None:
        return None


class Unclear(LightningModule):
    """Two networks, and no forward that would join them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = net("silu"), net("silu")

    def configure_optimizers(self) -> Any:
        return sgd(self)

    def training_step(self, images_and_labels: list[Tensor], _: int) -> Tensor:
        return self.one(images_and_labels[0]).mean()


REFUSED: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "several optimizers": (
        Manual,
        {"total_steps": 12},
        ("a session attaches to one optimizer", "seen: 0: SGD, 1: Adam", "EFFPCallback(optimizer=0)"),
    ),
    "one that is not there": (Classifier, {"optimizer": 2}, ("a session attaches to one optimizer", "seen: 0: SGD")),
    "no optimizer": (
        Nothing,
        {},
        ("the optimizer holds none of this model's parameters",),
    ),
    "manual steps": (
        lambda: Manual(sgd),
        {},
        ("with manual optimization nobody but you knows", "EFFPCallback(total_steps="),
    ),
    "no end": (
        Classifier,
        {"trainer_max_epochs": -1},
        ("does not know how long it will train", "seen: max_epochs=-1", "Trainer(max_epochs=...)"),
    ),
    "two networks": (Unclear, {}, ("it is not clear which part", "one, two", 'EFFPCallback(network="one")')),
    "a wrong path": (Classifier, {"network": "net"}, ("no module 'net' in it", 'EFFPCallback(network="network")')),
    "too few steps": (Classifier, {"trainer_max_epochs": 1}, ("total_steps is too small for 4 updates",)),
}


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize(("make", "options", "parts"), REFUSED.values(), ids=REFUSED)
def test_refused_when_training_starts(
    make: Any, options: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    module = make()
    before = copy.deepcopy(module.state_dict())  # the trainer's own loop draws random numbers, and moves the module
    with pytest.raises(SessionError) as caught:
        fitted(tmp_path, module, **options)
    assert same(module.state_dict(), before)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_compact_before_fit_and_before_the_mask_is_fixed(tmp_path: Path) -> None:
    with pytest.raises(SessionError) as caught:
        callback().compact()
    assert "there is no session yet" in str(caught.value)
    assert "to mend it: trainer.fit(...) with this callback, in this process" in str(caught.value)
    _, effp = fitted(tmp_path, total_steps=100)
    with pytest.raises(SessionError, match="the mask is not fixed yet"):
        effp.compact()


def test_a_checkpoint_without_a_session(tmp_path: Path) -> None:
    trainer(tmp_path, max_epochs=1).fit(Classifier(), loader())
    module = Classifier()
    with pytest.raises(SessionError) as caught:
        fitted(tmp_path / "again", module, tmp_path / "epoch=0.ckpt")
    assert "resumes from a checkpoint that holds no state of a session" in str(caught.value)
    assert "seen: 4 steps taken before this callback was there" in str(caught.value)
    assert "load its weights alone into a new run" in str(caught.value)


def test_a_checkpoint_of_another_target(tmp_path: Path) -> None:
    fitted(tmp_path)
    with pytest.raises(SessionError, match="the state is of a session with another schedule"):
        fitted(tmp_path / "again", path=tmp_path / "epoch=0.ckpt", trainer_max_epochs=EPOCHS + 1)


def test_a_second_fit_with_the_same_callback(tmp_path: Path) -> None:
    module, effp = fitted(tmp_path)
    with pytest.raises(SessionError) as caught:
        trainer(tmp_path, effp).fit(module, loader())
    assert "this callback has had its run" in str(caught.value)
    assert "make a new EFFPCallback for the new run" in str(caught.value)
    assert effp.compact() is not None


class Rebuilt(Classifier):
    """Makes itself a new optimizer in the middle, as some recipes do when they unfreeze a backbone."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.strategy.setup_optimizers(self.trainer)


def test_an_optimizer_that_is_rebuilt(tmp_path: Path) -> None:
    with pytest.raises(SessionError) as caught:
        fitted(tmp_path, Rebuilt())
    assert "the optimizer was rebuilt while the session ran" in str(caught.value)
    assert "change its param_groups in place" in str(caught.value)


VERSIONS = """
import builtins, importlib.metadata, sys
real, wanted = importlib.metadata.version, sys.argv[1]
importlib.metadata.version = lambda name: wanted if name in ("lightning", "pytorch-lightning") else real(name)
from effp_fx.errors import SessionError
try:
    import effp_fx.integrations.lightning
except SessionError as error:
    print(error)
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"lightning", "pytorch_lightning"})
print("imported:", loaded)
"""


@pytest.mark.long
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3+cpu", "2.3.3"])
def test_a_release_that_is_not_supported_is_refused_before_it_runs(version: str) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", VERSIONS, version], cwd=root, capture_output=True, text=True)
    assert f"seen: lightning {version}" in done.stdout, done.stdout + done.stderr
    assert "GHSA-w37p-236h-pfx3" in done.stdout and "expected: lightning>=2.4,!=2.6.2,!=2.6.3" in done.stdout
    assert "imported: []" in done.stdout, "a line of it was run"


OTHER_NAME = """
import pytorch_lightning
from effp_fx.integrations.lightning import EFFPCallback
assert issubclass(EFFPCallback, pytorch_lightning.Callback)
"""


@pytest.mark.long
def test_the_package_that_the_program_uses_is_taken() -> None:
    pytest.importorskip("pytorch_lightning")
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", OTHER_NAME], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
