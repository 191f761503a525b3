"""What Torch-Pruning's own examples tell it about each family of models, as arguments for its pruner.

Followed from the examples of its 1.6.1: examples/torchvision_models (heads to ignore, channel groups of the
attention), examples/yolov8 and yolov5 (C2f taken apart, Detect ignored), examples/timm_models and
examples/transformers (heads of the attention, sizes to mend afterwards), tests and README (never the layer that makes
the classes). Where a model is not in them, it gets what its nearest relative gets. More than its examples do: outputs
with no gradient are kept from it always.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

FAMILIES = ("torchvision", "ultralytics", "timm", "hf")
TORCHVISION_IGNORED = {  # of each class of detector: what its example keeps whole
    "SSD": ("head",),
    "FasterRCNN": ("rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn", "roi_heads"),
    "MaskRCNN": ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor", "roi_heads.mask_predictor"),
    "KeypointRCNN": ("rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn.layer_blocks", "roi_heads.box_head",
                     "roi_heads.box_predictor", "roi_heads.keypoint_predictor"),
    "FCOS": ("head.classification_head.cls_logits", "head.regression_head.bbox_reg",
             "head.regression_head.bbox_ctrness"),
    "RetinaNet": ("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Arguments of the pruner, and what to mend in the model once it has cut."""

    options: dict[str, Any] = field(default_factory=dict)
    mend: Callable[[Any], None] = lambda pruner: None  # given the pruner, which holds the model


def family_of(model: nn.Module) -> str:
    """The family by the package that the model's class comes from; "other" where none of them."""
    package = type(model).__module__.partition(".")[0]
    named = "hf" if package == "transformers" else package
    return named if named in FAMILIES else "other"


def prepare(model: nn.Module, family: str) -> None:
    """Change the dense model as the examples do before anything is traced: gradients everywhere, C2f taken apart."""
    os.environ["TIMM_FUSED_ATTN"] = "0"
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for module in model.modules():
        if family == "timm" and hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 (the attribute is not one of nn.Module's)
    if family == "ultralytics":
        take_c2f_apart(model)


def recipe(model: nn.Module, family: str) -> Recipe:
    """The recipe for one dense model; prepare() has been called on it."""
    makers = {"torchvision": _torchvision, "ultralytics": _ultralytics, "timm": _timm, "hf": _transformers}
    return makers.get(family, _other)(model)


def differentiable(output: Any) -> list[Tensor]:
    """The tensors of an output that a gradient reaches: what its tracing can start from."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def _other(model: nn.Module) -> Recipe:
    return Recipe({"ignored_layers": _class_layers(model), "output_transform": differentiable})


def _torchvision(model: nn.Module) -> Recipe:
    paths = TORCHVISION_IGNORED.get(type(model).__name__, ())
    ignored = [model.get_submodule(path) for path in paths] or _class_layers(model)
    attention = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    options = {"ignored_layers": ignored, "output_transform": differentiable, "out_channel_groups": attention}

    def mend(pruner: Any) -> None:
        if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
            pruner.model.hidden_dim = pruner.model.conv_proj.out_channels

    return Recipe(options, mend)


def _ultralytics(model: nn.Module) -> Recipe:
    heads = [m for m in model.modules() if type(m).__name__.endswith(("Detect", "RTDETRDecoder"))]
    return Recipe({"ignored_layers": heads, "output_transform": differentiable})


def _timm(model: nn.Module) -> Recipe:
    ignored = _class_layers(model)
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    options = {"ignored_layers": ignored, "num_heads": heads, "round_to": 8, "output_transform": differentiable}

    def mend(pruner: Any) -> None:
        for m in pruner.model.modules():
            if hasattr(m, "qkv") and hasattr(m, "head_dim") and m.qkv in heads:
                m.num_heads = pruner.num_heads[m.qkv]
                m.head_dim = m.qkv.out_features // (3 * m.num_heads)
                m.attn_dim = m.num_heads * m.head_dim

    return Recipe(options, mend)


def _transformers(model: nn.Module) -> Recipe:
    heads: dict[nn.Module, int] = {}
    for m in model.modules():
        count = getattr(m, "num_attention_heads", getattr(m, "num_heads", None))
        for name in ("query", "key", "value", "q_proj", "k_proj", "v_proj"):
            if isinstance(count, int) and isinstance(getattr(m, name, None), nn.Linear):
                heads[getattr(m, name)] = count
    options = {"ignored_layers": _hf_heads(model), "num_heads": heads, "output_transform": _summed}
    return Recipe(options, _mend_attention_sizes)


def _summed(output: Any) -> Tensor:
    return torch.stack([tensor.sum() for tensor in differentiable(output)]).sum()


def _hf_heads(model: nn.Module) -> list[nn.Module]:
    """The modules that make the answers: classifiers and box predictors, by the names that the library gives them."""
    ends = ("classifier", "class_labels_classifier", "bbox_predictor", "class_embed", "bbox_embed")
    return [m for name, m in model.named_modules() if name.rpartition(".")[2] in ends]


def _mend_attention_sizes(pruner: Any) -> None:
    for m in pruner.model.modules():
        query = getattr(m, "query", getattr(m, "q_proj", None))
        if not isinstance(query, nn.Linear) or query not in pruner.num_heads:
            continue
        count = pruner.num_heads[query]
        sizes = {"num_attention_heads": count, "num_heads": count, "attention_head_size": query.out_features // count,
                 "head_dim": query.out_features // count, "all_head_size": query.out_features,
                 "embed_dim": query.out_features}  # fmt: skip
        for name, value in sizes.items():
            if isinstance(getattr(m, name, None), int):
                setattr(m, name, value)


def _class_layers(model: nn.Module) -> list[nn.Module]:
    """Every layer with as many outputs as the last one registered: what makes the classes."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [layer for layer in layers if _outputs(layer) == _outputs(layers[-1])]


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)  # type: ignore[arg-type]


class SplitC2f(nn.Module):
    """An Ultralytics C2f whose first convolution, halved by chunk(2), has become the two convolutions it stands for."""

    def __init__(self, c2f: Any) -> None:
        super().__init__()
        self.cv0, self.cv1 = _half(c2f.cv1, first=True), _half(c2f.cv1, first=False)
        self.cv2, self.m = c2f.cv2, c2f.m
        for name in ("f", "i", "type"):  # the bookkeeping by which its network finds this layer's inputs
            setattr(self, name, getattr(c2f, name))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, c1, H, W) -> (N, c2, H, W), equal to what the C2f gives."""
        parts = [self.cv0(x), self.cv1(x)]
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


def take_c2f_apart(model: nn.Module) -> None:
    """Replace every C2f by its equal with two first convolutions; subclasses with a forward of their own are left."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "C2f":
                setattr(parent, name, SplitC2f(child))


def _half(conv: Any, *, first: bool) -> Any:
    """One half of the output channels of an Ultralytics Conv (convolution, batch norm, activation)."""
    half = copy.deepcopy(conv)
    middle = conv.conv.out_channels // 2
    rows = slice(0, middle) if first else slice(middle, None)
    half.conv.out_channels = half.bn.num_features = middle
    half.conv.weight = nn.Parameter(conv.conv.weight.data[rows].clone())
    half.bn.weight = nn.Parameter(conv.bn.weight.data[rows].clone())
    half.bn.bias = nn.Parameter(conv.bn.bias.data[rows].clone())
    half.bn.running_mean = conv.bn.running_mean[rows].clone()
    half.bn.running_var = conv.bn.running_var[rows].clone()
    return half
