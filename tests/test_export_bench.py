"""The bench of exports: networks that are worth comparing, and files judged beside their model on drawn scenes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import export_scenes
from benchmarks.export_models import Subject, settle, smooth
from effp_fx.export import export_onnx
from effp_fx.export.selection import Detections
from effp_fx.inputs import Example

BOXES = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 60.0, 50.0]])


class Head(nn.Module):
    """Scores after scores: the second layer sees what the first one became."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.score_first, self.score_second = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score_second(self.score_first(self.body(x)).flatten(2).transpose(1, 2))


def test_settled_heads_spread_about_zero() -> None:
    torch.manual_seed(0)
    model, example = Head(), Example((5 + 50 * torch.rand(2, 3, 12, 12),))
    before = model(*example.args)
    settle(model, example, 4.0)
    after = model(*example.args)
    assert before.flatten(0, 1).mean(0).abs().max() > 0.5 and before.abs().max() > 4.1
    torch.testing.assert_close(after.flatten(0, 1).mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    assert float(after.detach().abs().max()) == pytest.approx(4.0, abs=1e-3)


def test_smooth_kernels_keep_their_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    before = copy.deepcopy(model)
    smooth(model)
    mean = before[0].weight.mean((2, 3), keepdim=True)
    torch.testing.assert_close(model[0].weight - before[0].weight, (2 * mean).expand(4, 3, 3, 3))
    assert torch.equal(model[1].weight, before[1].weight)


def test_map_is_one_where_all_is_found_and_falls_with_what_is_missed() -> None:
    there = [Detections(BOXES, torch.ones(2), torch.tensor([7, 3]))]
    missed = [Detections(BOXES[:1], torch.ones(1), torch.tensor([7]))]
    assert export_scenes.mean_precision(there, there, (3, 7)) == pytest.approx(1.0)
    assert export_scenes.mean_precision(missed, there, (3, 7)) == pytest.approx(0.5)


@pytest.mark.slow
def test_a_file_is_judged_beside_its_model(tmp_path: Path) -> None:
    model, example = Subject("small", "effp:ssd_small?size=64").network("dense")
    report = export_onnx(model, tmp_path / "full.onnx", example, part="full")
    found = export_scenes.judge(model, example, tmp_path / "full.onnx", report, "own")
    assert found.images == 8 and found.detections > 100 and found.differ == 0
    assert 0.05 < found.map_model < 1 and abs(found.map_model - found.map_file) <= 1e-4
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(parameter for parameter in other.parameters() if parameter.ndim == 4).mul_(1.2)
    changed = export_scenes.judge(other, example, tmp_path / "full.onnx", report, "own")
    assert changed.differ > 0 and abs(changed.map_model - changed.map_file) > 1e-4
