"""EFFPCallback under Hugging Face's own Trainer: DETR and RT-DETR, resuming bit for bit, and what is refused."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import effp_fx
from effp_fx import Session, verify
from effp_fx.errors import FileFormatError, SessionError
from tests.session_run import STEPS, UPDATES, batch, held, net
from tests.test_session_resume import same

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
integration = pytest.importorskip("effp_fx.integrations.transformers")
STATE, EFFPCallback = integration.STATE, integration.EFFPCallback

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]

ROOT = Path(__file__).parents[1]
EPOCHS = 3


class Plain(nn.Module):
    """The smallest thing that the Trainer trains: a loss beside the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = net("silu")

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


def images() -> list[dict[str, Any]]:
    parts = [batch(step) for step in range(STEPS // EPOCHS)]
    return [{"pixel_values": image, "labels": label} for part in parts for image, label in zip(*part, strict=True)]


def scenes() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.4], [0.6, 0.7, 0.5, 0.3]])
    labels = {"class_labels": torch.tensor([1, 2]), "boxes": boxes}
    return [{"pixel_values": torch.rand(3, 64, 64, generator=generator), "labels": labels} for _ in range(8)]


def collated(items: list[dict[str, Any]]) -> dict[str, Any]:
    labels = [item["labels"] for item in items]
    stacked = torch.stack(labels) if isinstance(labels[0], Tensor) else labels
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": stacked}


def detr() -> Any:
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 3}
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        **sizes,
        **heads,
    )
    return transformers.DetrForObjectDetection(config).train()


def rt_detr() -> Any:
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 32, 32], "encoder_ffn_dim": 32, "d_model": 32}
    decoder = {"decoder_layers": 1, "decoder_ffn_dim": 32, "decoder_in_channels": [32, 32, 32], "num_queries": 10}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_labels": 3, "num_denoising": 0}
    config = transformers.RTDetrConfig(
        backbone_config=backbone, backbone=None, use_pretrained_backbone=False, **sizes, **decoder, **heads
    )
    return transformers.RTDetrForObjectDetection(config).train()


def trainer(folder: Path, model: nn.Module, *callbacks: Any, **options: Any) -> Any:
    detector = not isinstance(model, Plain)
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": 2 if detector else 4,
            "learning_rate": 1e-3,
            "save_strategy": "epoch",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            **options,
        }
    )
    data = scenes() if detector else images()
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collated,
        callbacks=list(callbacks),
    )


def callback(model: nn.Module, **options: Any) -> EFFPCallback:
    size = 16 if isinstance(model, Plain) else 64
    example = {"pixel_values": torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))}
    return EFFPCallback(0.6, **{"example_inputs": example, **UPDATES, **options})


def fitted(folder: Path, model: nn.Module | None = None, path: Any = None, **options: Any) -> tuple[Any, EFFPCallback]:
    model = Plain() if model is None else model
    effp = callback(model, regrow_by="random")  # so that something does come back
    trainer(folder, model, effp, **options).train(resume_from_checkpoint=path)
    return model, effp


def session_of(effp: EFFPCallback) -> Session:
    assert effp.session is not None
    return effp.session


LOADED = """
import sys, torch
def never(*args, **kwargs): raise AssertionError("torch.load was called")
torch.load = never
import effp_fx
from transformers import AutoConfig, AutoModelForObjectDetection
dense = AutoModelForObjectDetection.from_config(AutoConfig.from_pretrained(sys.argv[1]))
small = effp_fx.load(sys.argv[1] + "/small.safetensors", dense).eval()
pixels = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
print(repr(small(pixel_values=pixels).logits.double().sum().item()))
"""


@pytest.mark.long
@pytest.mark.parametrize("make", [detr, rt_detr])
def test_a_detector_of_the_family_goes_through_to_another_process(make: Any, tmp_path: Path) -> None:
    """Trained, cut, saved as transformers saves, and loaded without torch.load onto a model from its configuration."""
    model, effp = fitted(tmp_path, make())
    session, small = session_of(effp), effp.compact().eval()
    assert session.step == STEPS and not held(session)
    assert type(small) is type(model) and session.flops <= 0.6
    inputs = {"pixel_values": torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)}
    assert verify(session.masked(model), small, inputs).equal
    small.save_pretrained(tmp_path / "out")  # type: ignore[operator]  # a method of PreTrainedModel
    effp_fx.save(small, tmp_path / "out" / "small.safetensors")
    done = subprocess.run([sys.executable, "-c", LOADED, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(small(**inputs).logits.double().sum().item(), rel=1e-6)


def test_the_targets_are_met_through_accelerates_optimizer(tmp_path: Path) -> None:
    model, effp = fitted(tmp_path)
    session = session_of(effp)
    assert session.step == session.schedule.total_steps == STEPS and not held(session)
    small = effp.compact()
    assert type(small) is Plain and session.flops <= 0.6
    assert verify(session.masked(model), small, {"pixel_values": batch(3)[0]}).equal


def test_a_run_resumes_bit_for_bit_from_each_of_its_checkpoints(tmp_path: Path) -> None:
    model, effp = fitted(tmp_path / "one")
    wanted = session_of(effp).state_dict()
    assert any(update.regrown for update in session_of(effp).history), "nothing came back, which proves little"
    for step in (4, 8):
        shutil.copytree(tmp_path / "one" / f"checkpoint-{step}", tmp_path / f"from{step}" / f"checkpoint-{step}")
        again, other = fitted(tmp_path / f"from{step}", path=True)
        assert same(session_of(other).state_dict(), wanted) and same(again.state_dict(), model.state_dict()), step


@pytest.mark.long
def test_weights_that_the_trainer_leaves_out_are_loaded(tmp_path: Path) -> None:
    """Transformers 5 saves parts of DETR under older names, which its Trainer does not find again."""
    model, effp = fitted(tmp_path / "one", detr())
    shutil.copytree(tmp_path / "one" / "checkpoint-8", tmp_path / "two" / "checkpoint-8")
    again, other = fitted(tmp_path / "two", detr(), path=True)
    assert same(session_of(other).state_dict(), session_of(effp).state_dict())
    assert same(again.state_dict(), model.state_dict())


def test_weights_that_are_not_the_checkpoints(tmp_path: Path) -> None:
    """What a tool did not load shows where channels that are off are not zero."""
    fitted(tmp_path)
    saved = torch.load(tmp_path / "checkpoint-12" / STATE, weights_only=True)["session"]
    attachment, model = integration.Attachment("trainer.train()", callback(Plain())._attachment._options), Plain()
    attachment.resume_from(saved)
    with pytest.raises(SessionError, match="the model's weights are not those of the checkpoint"):
        attachment.attach(model, torch.optim.AdamW(model.parameters()), STEPS, STEPS)
    assert attachment.session is None


def test_accumulated_gradients_make_one_step(tmp_path: Path) -> None:
    model = Plain()
    effp = callback(model, updates=2)
    trainer(tmp_path, model, effp, gradient_accumulation_steps=2).train()
    assert session_of(effp).step == session_of(effp).schedule.total_steps == STEPS // 2
    effp.compact()


DDP = """
import sys, os, torch
from pathlib import Path
from tests.test_transformers_trainer import callback, Plain, trainer
torch.set_num_threads(1)
folder, rank, model = Path(sys.argv[1]), int(os.environ["RANK"]), Plain()
effp = callback(model, updates=2)
trainer(folder / "run", model, effp, ddp_backend="gloo").train(resume_from_checkpoint=len(sys.argv) > 2)
state = {"keep": torch.from_numpy(effp.session.keep), "weights": dict(model.named_parameters())}
shapes = [tuple(value.shape) for value in effp.compact().parameters()]
torch.save(state | {"steps": effp.session.step, "compact": shapes}, folder / f"rank{rank}")
"""


@pytest.mark.long
def test_two_processes_choose_the_same_and_resume(tmp_path: Path) -> None:
    def ranks(*more: str) -> list[Any]:
        script = tmp_path / "script.py"
        script.write_text(DDP)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([*command, script, tmp_path, *more], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]

    one, two = ranks()
    assert one["steps"] == STEPS // 2 and not one["keep"].all()
    assert same(one, two)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    assert same(ranks("resume")[0], one)


def test_compact_before_train(tmp_path: Path) -> None:
    effp = callback(Plain())
    with pytest.raises(SessionError) as caught:
        effp.compact()
    assert "there is no session yet" in str(caught.value)
    assert "to mend it: trainer.train() with this callback" in str(caught.value)


def test_a_checkpoint_without_a_session(tmp_path: Path) -> None:
    trainer(tmp_path, Plain(), num_train_epochs=1).train()
    with pytest.raises(SessionError) as caught:
        fitted(tmp_path, path=True)
    assert "resumes from a checkpoint that holds no state of a session" in str(caught.value)
    assert "seen: 4 steps taken before this callback was there" in str(caught.value)


def test_a_checkpoint_from_elsewhere_is_named(tmp_path: Path) -> None:
    """The Trainer tells its callbacks the step that it resumes at, not the folder."""
    fitted(tmp_path / "one")
    place = str(tmp_path / "kept")
    shutil.move(tmp_path / "one" / "checkpoint-8", place)
    with pytest.raises(SessionError, match="holds no state of a session"):
        fitted(tmp_path / "two", path=place)
    model = Plain()
    effp = callback(model, resume_from=place)
    trainer(tmp_path / "two", model, effp).train(resume_from_checkpoint=place)
    assert session_of(effp).step == STEPS
    other = callback(Plain(), resume_from=tmp_path / "one" / "checkpoint-4")
    with pytest.raises(SessionError) as caught:
        trainer(tmp_path / "two", Plain(), other).train(resume_from_checkpoint=place)
    assert "this session's state is of another checkpoint" in str(caught.value)
    assert "seen: step 4" in str(caught.value) and "expected: step 8" in str(caught.value)


def test_a_damaged_state(tmp_path: Path) -> None:
    fitted(tmp_path)
    path = tmp_path / "checkpoint-8" / STATE
    path.write_bytes(path.read_bytes()[:200])
    shutil.rmtree(tmp_path / "checkpoint-12")
    with pytest.raises(FileFormatError, match="the session's state cannot be read"):
        fitted(tmp_path, path=True)


def test_a_second_run_with_the_same_callback(tmp_path: Path) -> None:
    model, effp = fitted(tmp_path)
    before = copy.deepcopy(model.state_dict())  # not `untouched`: the Trainer seeds and moves what it is given
    with pytest.raises(SessionError, match="this callback has had its run"):
        trainer(tmp_path / "two", model, effp).train()
    assert same(model.state_dict(), before)


class Rebuilds(transformers.TrainerCallback):  # type: ignore[misc,name-defined]  # the module came by importorskip
    """Gives the Trainer a new optimizer in the middle."""

    trainer: Any = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            self.trainer.optimizer = torch.optim.SGD(self.trainer.model.parameters(), lr=0.1)


def test_an_optimizer_that_is_rebuilt(tmp_path: Path) -> None:
    model, rebuilds = Plain(), Rebuilds()
    rebuilds.trainer = trainer(tmp_path, model, callback(model), rebuilds)
    with pytest.raises(SessionError) as caught:
        rebuilds.trainer.train()
    assert "the optimizer was rebuilt while the session ran" in str(caught.value)
    assert "seen: step 5 was taken by another one" in str(caught.value)


def test_a_best_checkpoint_from_before_the_mask_was_fixed(tmp_path: Path) -> None:
    """`load_best_model_at_end` brings the first epoch back, whose channels are all alive."""
    model = Plain()
    effp = callback(model)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    run = trainer(tmp_path, model, effp, eval_strategy="epoch", **best)
    run.train()
    assert run.state.best_global_step == 4, "the first epoch is to be the one with the largest loss"
    with pytest.raises(SessionError) as caught:
        effp.compact()
    assert "the weights were replaced after the last step" in str(caught.value)
    assert "expected: weights from step 8 on" in str(caught.value)


VERSIONS = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "4.9.0" if name == "transformers" else real(name)
from effp_fx.errors import SessionError
try:
    import effp_fx.integrations.transformers
except SessionError as error:
    print(error)
"""


def test_versions_are_compared_as_numbers() -> None:
    """As text, 4.9 would come after 4.53."""
    done = subprocess.run([sys.executable, "-c", VERSIONS], cwd=ROOT, capture_output=True, text=True)
    assert "this version of transformers is not supported" in done.stdout, done.stdout + done.stderr
    assert "seen: transformers 4.9.0" in done.stdout and "expected: transformers>=4.53" in done.stdout
