"""FLOPs and parameters are counted, not estimated: equal to torch's own counter, before the cut and after it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import effp_fx
from effp_fx import api, models
from effp_fx.inputs import Example
from effp_fx.models.family_tiny import TINY
from effp_fx.models.randomise import randomise

SPECS = [
    ("torchvision:resnet18", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:shufflenet_v2_x0_5", 64),
    pytest.param("timm:vit_tiny_patch16_224?img_size=32", 32, marks=pytest.mark.timm),
    pytest.param("ultralytics:yolov8n.yaml", 64, marks=pytest.mark.ultralytics),
]


def counted(model: nn.Module, example: Example) -> float:
    """2 FLOPs a multiply-accumulate of one eval pass, by torch. Fused attention is off: not every release counts it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model).eval().requires_grad_(False)(*example.args, **example.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def hold(model: nn.Module, example: Example, target: float = 0.6) -> None:
    """Trace, prune, and compare all four numbers with torch's, to the last digit."""
    randomise(model)
    result = api.prune_reported(model, example, target_flops=target)
    assert result.flops_before == result.trace.flops == counted(model, example)
    assert result.flops_after == counted(result.model, example)
    assert result.flops_after < result.flops_before
    assert result.params_before == result.trace.params == parameters(model)
    assert result.params_after == parameters(result.model) < result.params_before


@pytest.mark.parametrize(("spec", "side"), SPECS)
def test_counts_are_those_of_torch(spec: str, side: int) -> None:
    pytest.importorskip(spec.partition(":")[0])
    hold(models.build(spec).model, Example((torch.rand(1, 3, side, side),)))


# torch's counter knows no deformable convolution, and ours does.
@pytest.mark.parametrize("name", sorted({*TINY} - {"deformable"}))
def test_counts_on_a_tiny_net(name: str) -> None:
    built = models.build(f"effp:{name}")
    example = built.example()
    traced = effp_fx.trace(built.model, example)
    assert (traced.flops, traced.params) == (counted(built.model, example), parameters(built.model))


@pytest.mark.transformers
def test_counts_on_a_transformer_that_detects() -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    sizes = {
        f"{part}_{name}": 1 if name == "layers" else 64
        for part in ("encoder", "decoder")
        for name in ("layers", "ffn_dim")
    }
    config = transformers.DetrConfig(backbone_config=backbone, d_model=32, num_queries=5, **sizes)
    model = transformers.DetrForObjectDetection(config).eval()
    hold(model, Example((), {"pixel_values": torch.rand(1, 3, 64, 64)}), target=0.8)
