"""Tests of the model registry, of every family's adapter, of the tiny nets and of randomise."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effp_fx.errors import EffpError, ModelNameError, RegistrationError
from effp_fx.inputs import Example
from effp_fx.models import Adapter, adapter_for, build, example_for, names, randomise, register_model, registry
from effp_fx.models.family_tiny import TINY
from effp_fx.models.registry import mean_square_loss
from effp_fx.models.spec import split_options

FEW = "min_size=64&max_size=64&box_batch_size_per_image=4&rpn_post_nms_top_n_train=20&rpn_post_nms_top_n_test=20"
TORCHVISION = [
    "torchvision:resnet18",
    "torchvision:ssdlite320_mobilenet_v3_large",
    f"torchvision:fasterrcnn_mobilenet_v3_large_320_fpn?norm=frozen&{FEW}",
    pytest.param(f"torchvision:maskrcnn_resnet50_fpn?{FEW}", marks=pytest.mark.slow),
    pytest.param(f"torchvision:keypointrcnn_resnet50_fpn?{FEW}", marks=pytest.mark.slow),
    "torchvision:lraspp_mobilenet_v3_large",
    pytest.param("torchvision:fcn_resnet50?aux_loss=true", marks=pytest.mark.slow),
]
OTHERS = [
    pytest.param(f"{family}:{name}", marks=getattr(pytest.mark, package))
    for family, package, name in [
        ("ultralytics", "ultralytics", "yolo11n.yaml"),
        ("ultralytics", "ultralytics", "yolov10n.yaml?nc=3"),
        ("ultralytics", "ultralytics", "yolov8n-cls.yaml"),
        ("ultralytics", "ultralytics", "yolov8n-worldv2.yaml"),
        ("ultralytics", "ultralytics", "yoloe-11n-seg.yaml"),
        ("timm", "timm", "test_resnet"),
        ("hf", "transformers", "yolos?num_hidden_layers=2"),
        ("hf", "transformers", "detr?encoder_layers=1&decoder_layers=1"),
    ]
]
PACKAGES = ("ultralytics", "timm", "transformers")


@pytest.fixture(autouse=True)
def _need_package(request: pytest.FixtureRequest) -> None:
    for package in PACKAGES:
        if request.node.get_closest_marker(package) and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def families() -> Iterator[None]:
    before = dict(registry._ADAPTERS)
    yield
    registry._ADAPTERS.clear()
    registry._ADAPTERS.update(before)


def network(built: registry.Built) -> nn.Module:
    path = built.adapter.network_path(built.model) if built.adapter else ""
    return built.model.get_submodule(path) if path else built.model


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def assert_fed(spec: str) -> None:
    """A spec builds, runs on its inputs in eval mode, and gives a loss with gradients in train mode."""
    built = build(spec)
    model = network(built)
    assert built.adapter is not None and built.adapter is adapter_for(built.model)
    assert not any(module.training for module in model.modules())
    example = built.example()
    with torch.no_grad():
        outputs = tensors(model(*example.args, **example.kwargs))
    assert outputs and all(t.isfinite().all() for t in outputs)
    model.train()
    example = built.adapter.train_example(model) or example
    built.adapter.loss(model, model(*example.args, **example.kwargs)).backward()
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_tiny_nets_run_train_and_pickle(name: str) -> None:
    assert_fed(f"effp:{name}")
    model = build(f"effp:{name}?width=8").model
    assert pickle.loads(pickle.dumps(model)).state_dict().keys() == model.state_dict().keys()
    assert type(model).__doc__, "the docstring says what is hard about it"


@pytest.mark.filterwarnings("ignore")  # what the libraries warn of is theirs
@pytest.mark.parametrize("spec", [*TORCHVISION, *OTHERS])
def test_families_run_and_train(spec: str) -> None:
    assert_fed(spec)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.ultralytics
def test_the_yolo_object_is_a_wrapper() -> None:
    from ultralytics import YOLO

    yolo = YOLO("yolov8n.yaml")
    adapter = adapter_for(yolo)
    assert adapter is not None
    assert adapter.network_path(yolo) == "model"
    assert adapter.network_path(yolo.model) == ""
    assert example_for(yolo).tensors()[0].shape == (1, 3, 320, 320)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.ultralytics
def test_a_checkpoint_on_disk_builds_and_one_that_is_absent_is_not_downloaded(tmp_path: Path) -> None:
    model = build("ultralytics:yolov8n.yaml?nc=2").model
    path = tmp_path / "mine.pt"
    torch.save({"model": model.half()}, path)
    loaded = build(f"ultralytics:{path}").model
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    with pytest.raises(ModelNameError, match=r"there is no file yolov8n\.pt"):
        build("ultralytics:yolov8n.pt")
    with pytest.raises(ModelNameError, match="takes no options"):
        build(f"ultralytics:{path}?nc=3")


def test_norm_frozen_reaches_the_backbone_only() -> None:
    built = build("torchvision:fasterrcnn_resnet50_fpn_v2?norm=frozen&num_classes=3")
    kinds = {path.split(".")[0]: type(m).__name__ for path, m in built.model.named_modules() if "BatchNorm" in str(m)}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in built.model.get_submodule("backbone").modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in built.model.get_submodule("roi_heads").modules())
    assert "backbone" in kinds


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("ssd300_vgg16", (3, 300, 300)),
        ("ssdlite320_mobilenet_v3_large", (3, 320, 320)),
        ("retinanet_resnet50_fpn", (3, 800, 800)),
        ("retinanet_resnet50_fpn?min_size=256&max_size=256", (3, 256, 256)),
    ],
)
def test_detectors_get_images_of_the_size_they_resize_to(spec: str, size: tuple[int, ...]) -> None:
    built = build(f"torchvision:{spec}")
    (images,) = built.example().args
    assert isinstance(images, list) and [tuple(i.shape) for i in images] == [size]
    resized, _ = built.model.get_submodule("transform")(images)
    assert tuple(resized.tensors.shape[1:]) == size


def test_examples_follow_channels_and_dtype_of_the_model() -> None:
    model = build("torchvision:resnet18").model
    model.set_submodule("conv1", nn.Conv2d(5, 64, 7, 2, 3, bias=False))
    (tensor,) = example_for(model.double()).tensors()
    assert (tensor.shape[1], tensor.dtype) == (5, torch.float64)
    assert example_for(build("torchvision:inception_v3").model).tensors()[0].shape[-1] == 299


def test_a_model_of_nobody_gets_inferred_inputs() -> None:
    assert adapter_for(nn.Conv2d(3, 4, 3)) is None
    assert example_for(nn.Linear(3, 4)).tensors()[0].shape == (1, 3)


@pytest.mark.parametrize(
    ("spec", "message", "mend"),
    [
        ("resnet18", "is not a model spec", "torchvision:resnet18"),
        (":x", "is not a model spec", None),
        ("torchvison:resnet18", "neither a model family nor a Python module", "did you mean torchvision?"),
        ("torchvision:resnet", "torchvision has no model 'resnet'", "resnet"),
        ("torchvision:resnet18?colour=red", "does not take these options", None),
        ("torchvision:resnet18?norm=group", "norm takes one value", None),
        ("torchvision:squeezenet1_0?norm=frozen", "no batch norm to freeze", None),
        ("torchvision:resnet18?num_classes", "cannot read the option 'num_classes'", None),
        ("effp:residul", "effp has no model 'residul'", "residual"),
        ("effp:chain?width=12", "does not take these options", None),
        ("nowhere/at_all.py:make", "there is no file nowhere/at_all.py", None),
        ("torch.nn:Conv2D", "torch.nn has no factory 'Conv2D'", "Conv2d"),
        ("torch.nn:Conv2d?colour=1", "cannot be called with these options", None),
        ("collections:OrderedDict", "did not return a torch.nn.Module", None),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, message: str, mend: str | None) -> None:
    with pytest.raises(ModelNameError) as caught:
        build(spec)
    assert message in str(caught.value)
    assert mend is None or mend in str(caught.value.mend)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("ultralytics:yolov8q.yaml", "ultralytics has no model", marks=pytest.mark.ultralytics),
        pytest.param("ultralytics:yolov10nn.yaml", "ultralytics has no model", marks=pytest.mark.ultralytics),
        pytest.param("ultralytics:yolov8n.yaml?colour=1", "does not take", marks=pytest.mark.ultralytics),
        pytest.param("timm:resnt18", "resnet18", marks=pytest.mark.timm),
        pytest.param("timm:resnet18?colour=1", "does not take", marks=pytest.mark.timm),
        pytest.param("hf:yoloz", "hf has no model", marks=pytest.mark.transformers),
        pytest.param("hf:yolos?colour=1", "no such field: colour", marks=pytest.mark.transformers),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_names_of_other_families(spec: str, message: str) -> None:
    with pytest.raises(ModelNameError, match=message):
        build(spec)


def test_a_family_whose_package_is_absent_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelNameError, match="timm is not installed") as caught:
        build("timm:resnet18")
    assert caught.value.mend == 'pip install "effp-fx[timm]"'


def test_factories_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n    pass\n"
        "def bare(width=4):\n    return Net(width, 2)\n"
        "def fed():\n    return Net(4, 2), (torch.ones(7, 4),)\n"
    )
    built = build(f"{path}:bare?width=6")
    assert built.adapter is None and not built.model.training
    assert built.example().tensors()[0].shape == (1, 6)
    assert build(f"{path}:fed").example().tensors()[0].shape == (7, 4)
    assert pickle.loads(pickle.dumps(built.model)).in_features == 6
    known = build("torchvision.models:resnet18?num_classes=3")
    assert known.adapter is not None and known.adapter.name == "torchvision"


def test_a_file_that_fails_is_not_left_imported(tmp_path: Path) -> None:
    import sys

    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('mine')\n")
    with pytest.raises(RuntimeError, match="mine"):
        build(f"{path}:make")
    assert not any(name.startswith("effp_fx_user_broken") for name in sys.modules)


def test_options_are_read_as_python_scalars() -> None:
    name, options = split_options("net?a=1&b=0.5&c=true&d=none&e=text&f=1,2&g=64,&h=1e-3")
    assert name == "net"
    assert options == dict(a=1, b=0.5, c=True, d=None, e="text", f=(1, 2), g=(64,), h=1e-3)
    for text in ("net?a", "net?=1", "net?a=1&a=2"):
        with pytest.raises(ModelNameError, match="cannot read the option"):
            split_options(text)


class MyNet(nn.Linear):
    pass


class MyFamily(Adapter):
    name = "mylab"

    def build(self, name: str, **options: Any) -> nn.Module:
        return MyNet(3, int(name)).train()

    def knows(self, model: nn.Module) -> bool:
        return isinstance(model, MyNet)

    def example(self, model: nn.Module) -> Example:
        return Example((torch.ones(2, 3),))


@pytest.mark.usefixtures("families")
def test_a_family_of_the_users_own() -> None:
    adapter = register_model(MyFamily())
    built = build("mylab:7")
    assert built.adapter is adapter and "mylab" in names() and not built.model.training
    assert built.model(*built.example().args).shape == (2, 7)
    assert adapter.train_example(built.model) is None
    with pytest.raises(RegistrationError, match="a model family 'mylab' already"):
        register_model(MyFamily())
    assert register_model(MyFamily(), replace=True) is adapter_for(built.model) is not adapter


@pytest.mark.usefixtures("families")
def test_what_is_no_adapter_is_refused() -> None:
    with pytest.raises(RegistrationError, match="must be an instance") as caught:
        register_model(MyFamily)  # type: ignore[arg-type]
    assert "parentheses" in str(caught.value.mend)
    nameless = type("Nameless", (MyFamily,), {"name": "has space"})()
    with pytest.raises(RegistrationError, match="needs a name"):
        register_model(nameless)


def test_the_loss_sums_scalars_and_mean_squares() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    outputs = {"loss": weight * 3, "maps": [weight * torch.ones(4)], "labels": torch.ones(2, dtype=torch.int64)}
    assert float(mean_square_loss(outputs).detach()) == 6 + 4
    with pytest.raises(EffpError, match="no floating tensor"):
        mean_square_loss({"labels": torch.ones(2)})


def test_randomise_is_deterministic_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    model = build("effp:frozen_norm").model
    torch.set_rng_state(state)
    randomise(model, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    again = build("effp:frozen_norm").model
    again.load_state_dict(model.state_dict())
    pairs = zip(randomise(again, seed=3).state_dict().items(), model.state_dict().values(), strict=True)
    changed = [name for (name, a), b in pairs if not torch.equal(a, b)]
    assert changed == []
    other = randomise(again, seed=4).state_dict()
    assert not torch.equal(other["norms.0.running_var"], model.state_dict()["norms.0.running_var"])


@pytest.mark.parametrize("name", TINY)
def test_randomise_leaves_no_value_trivial(name: str) -> None:
    model = randomise(build(f"effp:{name}").model)
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            assert tensor.numel() == 1 or tensor.unique().numel() > 1, path
            assert float(tensor.detach().abs().mean()) > 1e-3, path


def test_randomise_wakes_small_scales_and_flips_signs_of_norms() -> None:
    model = build("effp:layer_scale").model
    gamma = randomise(model).get_parameter("gamma").detach()
    assert gamma.min() >= 0.5 and gamma.max() <= 1.5
    scale = randomise(nn.BatchNorm2d(2000)).get_parameter("weight").detach()
    assert 0.05 < float((scale < 0).float().mean()) < 0.15
    assert scale.abs().min() >= 0.5 and scale.abs().max() <= 1.5
    linear = nn.Linear(4, 4)
    nn.init.zeros_(linear.weight)
    assert randomise(linear).get_parameter("weight").abs().min() > 0


@pytest.mark.parametrize("name", ["residual", "frozen_norm"])
def test_randomise_with_an_example_settles_the_activations(name: str) -> None:
    built = build(f"effp:{name}")
    built.model.train()
    randomise(built.model, example=built.example())
    assert built.model.training
    assert all(not module._forward_pre_hooks for module in built.model.modules())
    norms = [m for m in built.model.modules() if hasattr(m, "running_var")]
    spread: list[float] = []
    for norm in norms:
        norm.register_forward_hook(lambda m, _, out: spread.append(float((out.std() / m.weight.abs().mean()).detach())))
    built.model.eval()(*built.example().args)
    assert len(spread) >= 2 and all(0.5 < s < 2 for s in spread)
