"""torchvision: detectors (lists of images, targets in training), segmentation, classification, video, optical flow."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from effp_fx.errors import ModelNameError
from effp_fx.inputs import Example, random_input
from effp_fx.models.detection import Detection, Field
from effp_fx.models.registry import Adapter, image_channels, is_from, reference_tensor
from effp_fx.models.spec import import_family, unknown_name, wrong_options

_STEM = {  # builders that warn unless they are told how to initialise
    "googlenet": {"init_weights": True},
    "inception_v3": {"init_weights": True},
}
_IMAGE_SIZE = {"Inception3": 299}
# Frames, height, width. Nets with a fixed head or table of positions have one size; the others take any.
_CLIP = {"MViT": (16, 224, 224), "S3D": (16, 224, 224)}
_SMALL_CLIP = (8, 64, 64)


class TorchvisionAdapter(Adapter):
    """Any model of ``torchvision.models.list_models()``, built without weights.

    Options are the builder's own (``num_classes``, ``min_size``, ``box_score_thresh``, ``weights=DEFAULT``), and
    ``norm=frozen``: batch norms of the backbone become ``FrozenBatchNorm2d``, as the builders of detectors do when
    they are given pretrained weights.
    """

    name: ClassVar[str] = "torchvision"

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build ``name`` with random weights; ModelNameError for unknown names and options."""
        models = import_family("torchvision.models", "")
        if name not in models.list_models():
            raise unknown_name(self.name, name, models.list_models())
        norm = options.pop("norm", None)
        if norm not in (None, "frozen"):
            raise ModelNameError("norm takes one value, frozen", where=f"torchvision:{name}", seen=f"norm={norm}")
        try:
            model: nn.Module = models.get_model(name, **_accepted(models, name), **_STEM.get(name, {}) | options)
        except (TypeError, ValueError, KeyError) as error:
            raise wrong_options(self.name, name, error) from error
        if norm == "frozen":
            freeze_batch_norm(model, name)
        return model.eval()

    def knows(self, model: nn.Module) -> bool:
        """Say whether the class comes from ``torchvision.models``."""
        return is_from(model, "torchvision.models")

    def example(self, model: nn.Module) -> Example:
        """Return one image: a list for detectors, of the size that their own transform resizes to."""
        like = reference_tensor(model)
        if _is_detector(model):
            return detector_example(model)
        if is_from(model, "torchvision.models.optical_flow"):  # two frames; the pyramid needs 128 pixels
            return Example(tuple(random_input((1, 3, 128, 128), like=like, seed=frame) for frame in range(2)))
        return Example((random_input(_shape(model, batch=1), like=like),))

    def train_example(self, model: nn.Module) -> Example | None:
        """Return two samples, since batch norm over 1x1 maps needs more than one; detectors get two boxes each."""
        like = reference_tensor(model)
        if _is_detector(model):
            return detector_train_example(model)
        if is_from(model, "torchvision.models.optical_flow"):
            return None
        return Example((random_input(_shape(model, batch=2), like=like),))

    def detection(self, model: nn.Module) -> Detection | None:
        """Say how one-stage detectors, and the heads of two-stage ones, give boxes, scores and labels."""
        return detector_meaning(model, "level") if _is_detector(model) else None

    def let_all_pass(self, model: nn.Module) -> None:
        """Let every score pass the threshold."""
        if _is_detector(model):
            let_scores_pass(model)


def detector_meaning(model: nn.Module, candidates_per: str) -> Detection:
    """Say how the output of a detector with torchvision's interface is read, and under which thresholds it came.

    Args:
        model: the detector.
        candidates_per: what `topk_candidates` counts in, where the detector is no SSD, which counts in each class.
    """
    heads: Any = getattr(model, "roi_heads", model)
    return Detection(
        boxes=Field("boxes"),
        scores=Field("scores"),
        labels=Field("labels"),
        iou_threshold=float(heads.nms_thresh),
        score_threshold=float(heads.score_thresh),
        max_detections=int(heads.detections_per_img),
        candidates=int(heads.topk_candidates) if hasattr(heads, "topk_candidates") else None,
        candidates_per="class" if is_from(model, "torchvision.models.detection.ssd") else candidates_per,
    )


def let_scores_pass(model: nn.Module) -> None:
    """Lower the threshold of a detector with torchvision's interface below every score."""
    heads: Any = getattr(model, "roi_heads", model)
    heads.score_thresh = -1.0


def detector_example(model: nn.Module) -> Example:
    """Return one image, in a list, of the size to which the ``transform`` of the detector resizes."""
    return Example(([random_input((3, *_detector_size(model)), like=reference_tensor(model))],))


def detector_train_example(model: nn.Module) -> Example:
    """Return two images of that size, and targets of two boxes for each."""
    like, size = reference_tensor(model), _detector_size(model)
    images = [random_input((3, *size), like=like, seed=seed) for seed in range(2)]
    return Example((images, [_target(model, size, like) for _ in images]))


def freeze_batch_norm(model: nn.Module, name: str = "model") -> None:
    """Replace, in place, each BatchNorm2d of the backbone (of the model, where it has none) by a frozen one.

    Raises:
        ModelNameError: there is no batch norm to freeze.
    """
    frozen_norm = import_family("torchvision.ops", "").FrozenBatchNorm2d
    root = model.get_submodule("backbone") if hasattr(model, "backbone") else model
    norms = [(path, module) for path, module in root.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise ModelNameError("there is no batch norm to freeze", where=f"torchvision:{name}", seen="norm=frozen")
    for path, norm in norms:
        frozen = frozen_norm(norm.num_features, eps=norm.eps)
        state = norm.state_dict()
        frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
        root.set_submodule(path, frozen)


def _accepted(models: Any, name: str) -> dict[str, None]:
    """The weight arguments that the builder names: video and classification nets have no backbone weights."""
    wanted = inspect.signature(models.get_model_builder(name)).parameters
    return {key: None for key in ("weights", "weights_backbone") if key in wanted}


def _is_detector(model: nn.Module) -> bool:
    return is_from(model, "torchvision.models.detection") and hasattr(model, "transform")


def _detector_size(model: nn.Module) -> tuple[int, int]:
    """Height and width that the model's transform leaves as they are: nothing is resized, the cost is the real one."""
    transform: Any = model.transform
    fixed = getattr(transform, "fixed_size", None)
    if fixed:
        return int(fixed[1]), int(fixed[0])
    side = min(int(transform.min_size[-1]), int(transform.max_size))
    return side, side


def _shape(model: nn.Module, batch: int) -> tuple[int, ...]:
    """Shape of an image batch, or of a clip (N, C, T, H, W)."""
    kind = type(model).__name__
    if is_from(model, "torchvision.models.video"):
        return (batch, 3, *_CLIP.get(kind, _SMALL_CLIP))
    channels = image_channels(model)
    if is_from(model, "torchvision.models.segmentation"):
        return (batch, channels, 128, 128)
    side = int(getattr(model, "image_size", 0) or _IMAGE_SIZE.get(kind, 224))
    return (batch, channels, side, side)


def _target(model: nn.Module, size: tuple[int, int], like: Tensor) -> dict[str, Tensor]:
    """Two boxes (x1, y1, x2, y2 in pixels) with labels, and masks and keypoints where the heads ask for them."""
    height, width = size
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.4, 0.3, 0.9, 0.9]], dtype=like.dtype, device=like.device)
    boxes = boxes * boxes.new_tensor([width, height, width, height])
    target = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64, device=like.device)}
    heads = getattr(model, "roi_heads", None)
    if heads is not None and heads.has_mask():
        target["masks"] = torch.zeros(2, height, width, dtype=torch.uint8, device=like.device)
        for mask, (x1, y1, x2, y2) in zip(target["masks"], boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
    if heads is not None and heads.has_keypoint():
        keypoints = int(heads.keypoint_predictor.kps_score_lowres.out_channels)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        visible = torch.ones(2, 1, dtype=like.dtype, device=like.device)
        target["keypoints"] = torch.cat([centres, visible], 1)[:, None].expand(2, keypoints, 3).contiguous()
    return target
