"""Saving and loading: the round trip of every kind of tensor, and every way in which a file can be wrong."""

from __future__ import annotations

import copy
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from effp_fx import atomic_file, binding, capture, grouping, interpret, models, store, weights_file
from effp_fx.errors import EffpError, FileFormatError, ModelNameError, PlanMismatchError
from effp_fx.inputs import as_example
from effp_fx.plan import GroupPlan, Plan, TensorPlan, from_keep, plan_of

KEPT = (0, 1, 3)


class Net(nn.Module):
    """Two convolutions of one tied weight, a batch norm, buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)
        self.again = nn.Conv2d(4, 2, 1)
        self.again.weight = self.head.weight
        self.register_buffer("codes", torch.arange(4))
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("nothing", torch.zeros(0, 3))
        # Not contiguous, and the second a slice of the memory of the first.
        wide = torch.randn(5, 2).t()
        self.register_buffer("wide", wide)
        self.register_buffer("part", wide[:, 1:3])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu() * self.table.reshape(1, -1, 1, 1).to(x.dtype)
        return self.head(x) + self.again(x)


def plan() -> Plan:
    along_0 = ["stem.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "codes", "table"]
    tensors = {name: TensorPlan((4,), {0: KEPT}) for name in along_0}
    tensors["stem.weight"] = TensorPlan((4, 3, 3, 3), {0: KEPT})
    tensors["head.weight"] = TensorPlan((2, 4, 1, 1), {1: KEPT})
    tensors["head.bias"] = tensors["again.bias"] = TensorPlan((2,))
    sizes = {"stem": {"out_channels": 3}, "norm": {"num_features": 3}}
    inputs = {"head": {"in_channels": 3}, "again": {"in_channels": 3}}
    return Plan(tensors, {**sizes, **inputs}, {"stem": GroupPlan(4, KEPT)}, {"flops_before": 4, "flops_after": 3})


def compact(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return binding.apply(models.randomise(Net(), seed), plan(), inplace=True).eval()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that could change: every tensor's values, dtype and identity, the sizes, the mode."""
    found: dict[str, Any] = {name: (id(t), t.dtype, t.clone()) for name, t in tensors_of(model).items()}
    for path, module in model.named_modules():
        found[f"{path}:"] = {key: value for key, value in vars(module).items() if isinstance(value, int | tuple | str)}
    return found


def assert_same_state(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, one in left.items():
        if isinstance(one, dict):
            assert one == right[name]
        else:
            assert one[:2] == right[name][:2] and torch.equal(one[2], right[name][2]), name


def assert_equal_models(left: nn.Module, right: nn.Module) -> None:
    one, two = tensors_of(left), tensors_of(right)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype, name
        assert torch.equal(one[name], two[name]), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return store.save(compact(), tmp_path / "small.safetensors", built_from="torchvision:none")


def test_a_model_comes_back_as_it_was(saved: Path) -> None:
    dense = Net()
    before = state_of(dense)
    small = store.load(saved, dense)
    assert_equal_models(small, compact())
    assert plan_of(small) == plan()
    assert small.head.weight is small.again.weight
    assert small.stem.out_channels == 3
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(small.eval()(x), compact()(x))
    assert_same_state(before, state_of(dense))


def test_in_place_cuts_the_model_that_was_given(saved: Path) -> None:
    dense = Net()
    assert store.load(saved, dense, inplace=True) is dense
    assert_equal_models(dense, compact())


def test_a_loaded_model_trains_and_is_saved_again_to_the_same_file(saved: Path) -> None:
    small = store.load(saved, Net()).train()
    small(torch.randn(2, 3, 5, 5)).sum().backward()
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    store.save(small, saved)
    assert_equal_models(store.load(saved, Net()), small)
    assert store.load(saved, Net()).effp_built_from == "torchvision:none"


def test_mode_and_requires_grad_are_those_of_the_dense_model(saved: Path) -> None:
    dense = Net().train()
    dense.stem.weight.requires_grad_(False)
    small = store.load(saved, dense)
    assert small.training and not small.stem.weight.requires_grad and small.norm.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_file_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = compact().to(dtype)
    small = store.load(store.save(model, tmp_path / "a"), Net())
    assert_equal_models(small, model)
    assert small.codes.dtype == torch.int64 and small.table.dtype == dtype
    assert small.head.weight is small.again.weight
    x = torch.randn(1, 3, 5, 5, dtype=dtype)
    assert torch.equal(small.eval()(x), model(x))


def test_dtypes_may_be_mixed(tmp_path: Path) -> None:
    model = compact()
    model.stem.half()
    model.codes = model.codes.to(torch.int16)
    small = store.load(store.save(model, tmp_path / "a"), Net())
    assert small.stem.weight.dtype == torch.float16 and small.codes.dtype == torch.int16
    assert small.head.weight.dtype == small.table.dtype == torch.float32
    assert_equal_models(small, model)


def test_the_file_is_plain_safetensors_with_tied_tensors_once(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    assert "head.weight" in tensors and "again.weight" not in tensors and "table" not in tensors
    assert tensors["wide"].is_contiguous() and tensors["part"].shape == (2, 2)
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["effp_fx.format_version"] == "1"
    assert json.loads(metadata["effp_fx.aliases"]) == {"again.weight": "head.weight"}
    assert metadata["effp_fx.built_from"] == "torchvision:none" and metadata["effp_fx.class"].endswith(".Net")
    assert metadata["effp_fx.torch"] == torch.__version__ and Plan.from_json(metadata["effp_fx.plan"]) == plan()


def test_equal_models_give_equal_files(tmp_path: Path, saved: Path) -> None:
    again = store.save(compact(), tmp_path / "again", built_from="torchvision:none")
    assert again.read_bytes() == saved.read_bytes()


def pruned(model: nn.Module, seed: int) -> nn.Module:
    """The model with about half of the channels of every group cut, at random."""
    named = capture.named_tensors(model)
    work = interpret.Interpretation({name: tuple(t.shape) for name, t in named.items() if t.is_floating_point()})
    work.walk(capture.capture(model, as_example(torch.zeros(1, 3, 64, 64))))
    work.freeze_unused()
    analysis = grouping.build(work, {name for name, _ in model.named_parameters()})
    keep = np.random.default_rng(seed).random(analysis.channels) < 0.5
    keep[[group.start for group in analysis.groups]] = True
    sizes = binding.layer_attributes(model, binding.new_shapes(analysis, keep))
    return binding.apply(model, from_keep(analysis, keep, sizes))


def test_a_network_pruned_twice_is_one_cut_of_the_dense_one(tmp_path: Path) -> None:
    dense = models.randomise(models.build("torchvision:resnet18").model)
    once = pruned(dense, 1)
    twice = pruned(once, 2)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(dense(x), twice(x))
    for small in (once, twice):
        path = store.save(small, tmp_path / "a", built_from="torchvision:resnet18")
        for loaded in (store.load(path, dense), store.load(path), binding.apply(dense, plan_of(small))):
            assert torch.equal(loaded(x), small(x))
            assert plan_of(loaded) == plan_of(small)
    first, both = plan_of(once).summary, plan_of(twice).summary
    assert both["flops_before"] == first["flops_before"] and both["flops_after"] < first["flops_after"]
    assert all(len(group.kept) < group.channels for group in plan_of(twice).groups.values())
    refused(store.save(twice, tmp_path / "a"), once, PlanMismatchError, "the plan is for another model")


# -- files that are wrong -------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None], *, reseal: bool = False) -> Path:
    """The file with its metadata and tensors changed; `reseal` with a digest that fits again."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    change(metadata, tensors)
    if reseal:
        metadata["effp_fx.sha256"] = weights_file._digest(tensors, metadata)
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


def refused(path: Path, dense: nn.Module, kind: type[EffpError], message: str) -> EffpError:
    """Load in place, the harshest way: the error, and that it changed nothing."""
    before = state_of(dense)
    with pytest.raises(kind, match=message) as caught:
        store.load(path, dense, inplace=True)
    assert_same_state(before, state_of(dense))
    assert str(path) in str(caught.value)
    return caught.value


def test_a_file_cut_short_anywhere(saved: Path) -> None:
    data = saved.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for size in (9, 20, header - 1, header, header + 1, len(data) - 1):
        saved.write_bytes(data[:size])
        assert f"{size} bytes" in str(refused(saved, Net(), FileFormatError, "the file is truncated"))
    saved.write_bytes(b"")
    refused(saved, Net(), FileFormatError, "truncated")
    saved.write_bytes(data[:5])
    refused(saved, Net(), FileFormatError, "not a safetensors file")


def test_a_file_with_more_behind_it(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    refused(saved, Net(), FileFormatError, "the file is damaged")


def test_a_header_that_is_no_json(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[9:12] = b"\xff\xff\xff"
    saved.write_bytes(data)
    refused(saved, Net(), FileFormatError, "the file is damaged")


@pytest.mark.parametrize("data", [b"hello, this is text", b"\x00" * 40, b"\xff" * 40])
def test_a_file_of_another_kind(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    refused(path, Net(), FileFormatError, "not a safetensors file")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_named_and_never_opened(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    error = refused(path, Net(), FileFormatError, "not a safetensors file")
    assert "torch.save" in str(error)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", Net(), FileFormatError, "cannot be read")
    refused(tmp_path, Net(), FileFormatError, "cannot be read")


def test_safetensors_of_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    refused(path, Net(), FileFormatError, "not written by effp_fx")


def test_one_bit_turned_anywhere_in_the_data(saved: Path) -> None:
    data = saved.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for at in range(header, len(data), 37):
        changed = bytearray(data)
        changed[at] ^= 1
        saved.write_bytes(changed)
        refused(saved, Net(), FileFormatError, "the file was altered")


@pytest.mark.parametrize(
    "change",
    [
        lambda notes, tensors: notes.update({"effp_fx.plan": notes["effp_fx.plan"].replace("0-1,3", "0-2")}),
        lambda notes, tensors: notes.update({"effp_fx.built_from": "torchvision:alexnet"}),
        lambda notes, tensors: notes.update({"effp_fx.more": "x"}),
        lambda notes, tensors: notes.pop("effp_fx.sha256"),
        lambda notes, tensors: notes.update({"effp_fx.aliases": "{}"}),
        lambda notes, tensors: tensors.pop("codes"),
        lambda notes, tensors: tensors.update({"new": torch.zeros(1)}),
        lambda notes, tensors: tensors.update({"codes": tensors["codes"].to(torch.int32)}),
        lambda notes, tensors: tensors.update({"wide": tensors["wide"].reshape(5, 2)}),
    ],
)
def test_whatever_is_altered_is_noticed(saved: Path, change: Callable[..., None]) -> None:
    refused(rewritten(saved, change), Net(), FileFormatError, "the file was altered")


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (
            {"effp_fx.format_version": "2", "effp_fx.effp_fx": "9.1"},
            "of a newer format.*(.|\n)*effp_fx 9.1(.|\n)*upgrade",
        ),
        ({"effp_fx.format_version": "9" * 5000}, "of a newer format"),
        ({"effp_fx.format_version": "0"}, "format is not known"),
        ({"effp_fx.format_version": "one"}, "format is not known"),
        ({"effp_fx.aliases": "["}, "list of tied tensors is malformed"),
        ({"effp_fx.aliases": '{"again.weight": "none"}'}, "list of tied tensors is malformed"),
        ({"effp_fx.aliases": '{"again.weight": []}'}, "list of tied tensors is malformed"),
        ({"effp_fx.aliases": "[1]"}, "list of tied tensors is malformed"),
        ({"effp_fx.plan": "{"}, "the plan is not JSON"),
        ({"effp_fx.plan": plan().to_json().replace("0-1,3", "0-1,9")}, "the plan is malformed"),
        ({"effp_fx.plan": plan().to_json().replace('"version":1', '"version":2')}, "the plan is of a version"),
    ],
)
def test_notes_that_are_sealed_but_wrong(saved: Path, notes: dict[str, str], message: str) -> None:
    refused(rewritten(saved, lambda old, _: old.update(notes), reseal=True), Net(), FileFormatError, message)


def test_a_file_without_a_plan(saved: Path) -> None:
    path = rewritten(saved, lambda notes, _: notes.pop("effp_fx.plan") and None, reseal=True)
    refused(path, Net(), FileFormatError, "holds no plan")


# -- models that are wrong ------------------------------------------------------------------------------------------


def test_a_plan_for_another_model(saved: Path) -> None:
    error = refused(saved, nn.Sequential(nn.Linear(2, 2)), PlanMismatchError, "the plan is for another model")
    assert "the dense " in str(error) and "Net, built from 'torchvision:none'" in str(error)


def test_a_model_that_is_pruned_already(saved: Path) -> None:
    refused(saved, compact(), PlanMismatchError, "pruned already: give the dense one")


def test_weights_of_other_names_and_shapes(saved: Path) -> None:
    more = Net()
    more.register_buffer("extra", torch.zeros(1))
    refused(saved, more, PlanMismatchError, "extra: not in the file")
    less = Net()
    del less.flag
    refused(saved, less, PlanMismatchError, "flag: in the file only")
    other = Net()
    other.wide = torch.zeros(3, 5)
    refused(saved, other, PlanMismatchError, r"wide: \(2, 5\) in the file, \(3, 5\) in the pruned model")


def test_weights_that_the_plan_does_not_leave(saved: Path) -> None:
    def change(notes: dict[str, str], tensors: dict[str, Tensor]) -> None:
        tensors["stem.weight"] = torch.zeros(4, 3, 3, 3)

    refused(rewritten(saved, change, reseal=True), Net(), PlanMismatchError, r"stem.weight: \(4, 3, 3, 3\) in the file")


def test_a_tie_that_the_file_does_not_have(tmp_path: Path) -> None:
    model = compact()
    model.again.weight = nn.Parameter(model.head.weight.detach() + 1)
    path = store.save(_with_plan_for_both(model), tmp_path / "a")
    untied = Net()
    untied.again.weight = nn.Parameter(untied.head.weight.detach().clone())
    assert_equal_models(store.load(path, untied), model)
    refused(path, Net(), PlanMismatchError, "head.weight and again.weight: one tensor in the model, two that differ")


def _with_plan_for_both(model: nn.Module) -> nn.Module:
    both = plan()
    both.tensors["again.weight"] = both.tensors["head.weight"]
    model.effp_plan = both.to_json()
    return model


# -- building from the file -----------------------------------------------------------------------------------------


class Family(models.Adapter):
    name = "testfamily"

    def build(self, name: str, **options: Any) -> nn.Module:
        return Net()

    def knows(self, model: nn.Module) -> bool:
        return isinstance(model, Net)

    def example(self, model: nn.Module) -> Any:
        raise NotImplementedError


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    from effp_fx.models import registry

    monkeypatch.setitem(registry._ADAPTERS, "testfamily", Family())


@pytest.mark.usefixtures("family")
def test_a_registered_family_needs_no_model(tmp_path: Path) -> None:
    small = store.load(store.save(compact(), tmp_path / "a", built_from="testfamily:net"))
    assert_equal_models(small, compact())
    assert not small.training
    # The spec stays with the model, so a second file knows it too.
    assert_equal_models(store.load(store.save(copy.deepcopy(small), tmp_path / "b")), small)


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "does not say how its dense model is built"),
        ("os:abort", "never runs code"),
        ("harmful.py:run", "never runs code"),
        ("testfamily:best.pt", "never runs code or opens a pickle"),
        ("testfamily:best.PT?a=1", "never runs code or opens a pickle"),
        ("torchvision:no_such_net", "no_such_net"),
    ],
)
def test_a_spec_that_is_not_built(tmp_path: Path, spec: str | None, message: str) -> None:
    path = store.save(compact(), tmp_path / "a", built_from=spec)
    with pytest.raises(ModelNameError, match=message):
        store.load(path)


# -- writing --------------------------------------------------------------------------------------------------------


def test_only_models_with_their_own_plan_are_saved(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError, match="this Net carries no plan"):
        store.save(Net(), tmp_path / "a")
    dense = Net()
    dense.effp_plan = plan().to_json()
    with pytest.raises(PlanMismatchError, match="the plan is for another model"):
        store.save(dense, tmp_path / "a")
    assert not list(tmp_path.iterdir())


class Extra(nn.Module):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "seen: dict"),
        (torch.zeros(3).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(3, device="meta"), "on the meta device"),
        (torch.zeros(3, dtype=torch.complex128), "cannot hold"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, value: object, message: str) -> None:
    model = compact()
    model.extra = Extra(value)
    with pytest.raises(FileFormatError, match=message):
        store.save(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_extra_state_that_is_a_tensor_comes_back(tmp_path: Path) -> None:
    model, dense = compact(), Net()
    model.extra, dense.extra = Extra(torch.tensor([1.0, 2.0])), Extra(torch.zeros(2))
    small = store.load(store.save(model, tmp_path / "a"), dense)
    assert torch.equal(small.extra.state, torch.tensor([1.0, 2.0]))


def test_a_write_that_fails_leaves_the_old_file_alone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileFormatError, match="No space left"):
        store.save(compact(2), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be written"):
        store.save(compact(), tmp_path / "none" / "a")


@pytest.mark.skipif(os.name == "nt", reason="permissions and links are POSIX here")
def test_permissions_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    mask = os.umask(0o022)
    try:
        atomic_file.write(path, b"1")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    link.symlink_to(path)
    atomic_file.write(link, b"2")
    assert link.is_symlink() and path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
