"""Hugging Face transformers: vision models built from a configuration, never from the hub."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from effp_fx.inputs import Example, random_input
from effp_fx.models.detection import Detection, Field
from effp_fx.models.registry import Adapter, image_channels, is_from, reference_tensor
from effp_fx.models.spec import import_family, unknown_name, wrong_options

# Which model class a model type gets: the first of these that the library has for it.
_TASKS = (
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
)
_RESNET = {"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
# Where the default configuration would ask the hub for a backbone, or is meant for images of 800 pixels.
_RECIPES: dict[str, dict[str, Any]] = {
    "detr": {"backbone_config": _RESNET},
    "conditional_detr": {"backbone_config": _RESNET},
    "dab-detr": {"backbone_config": _RESNET},
    "deformable_detr": {"backbone_config": {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}},
    "table-transformer": {"backbone_config": _RESNET},
    "yolos": {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "image_size": (256, 256),
        "use_mid_position_embeddings": False,
    },
}
# Whose last class is "nothing", so that scores are a softmax over the classes.
_WITH_NOTHING = ("detr", "table-transformer", "yolos")
_IMAGE_SIDE = 256  # a multiple of every stride
_MULTIPLE_HEADS = ("num_heads", "num_attention_heads", "attention_head_size", "all_head_size", "head_dim", "embed_dim")


class TransformersAdapter(Adapter):
    """A vision model type of transformers (``hf:detr``, ``hf:rt_detr``, ``hf:yolos``, ``hf:resnet``), random weights.

    Options are fields of its configuration: ``hf:detr?encoder_layers=2&d_model=128``. The DETR family gets a
    ResNet-50 backbone of transformers itself in place of a timm one from the hub; YOLOS the sizes of its tiny model.
    """

    name: ClassVar[str] = "hf"

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build model type ``name`` from its configuration; ModelNameError for unknown types and options."""
        transformers = import_family("transformers", "transformers")
        classes = _model_classes()
        if name not in classes:
            raise unknown_name(self.name, name, classes)
        recipe, configuration = _RECIPES.get(name, {}), transformers.CONFIG_MAPPING[name]
        foreign = [key for key in options if not hasattr(configuration(**recipe), key)]
        if foreign:  # a configuration keeps any keyword that it is given, and says nothing
            raise wrong_options(self.name, name, TypeError("no such field: " + ", ".join(foreign)))
        try:
            config = configuration(**recipe | options)
            model: nn.Module = getattr(transformers, classes[name])(config)
        except (TypeError, ValueError) as error:
            raise wrong_options(self.name, name, error) from error
        return model.eval()

    def knows(self, model: nn.Module) -> bool:
        """Say whether the class comes from ``transformers``."""
        return is_from(model, "transformers")

    def example(self, model: nn.Module) -> Example:
        """Return ``pixel_values`` of shape (1, C, H, W), the configuration's image size or 256."""
        return _pixels(model, 1)

    def train_example(self, model: nn.Module) -> Example:
        """Return two images and no labels: the losses of these models need a matcher that reads values."""
        return _pixels(model, 2)

    def detection(self, model: nn.Module) -> Detection | None:
        """Say how models with `logits` and `pred_boxes` are read: as their image processors do.

        Scores are the softmax where the last class is "nothing", else the sigmoid of each class.
        """
        config: Any = getattr(model, "config", None)
        if not type(model).__name__.endswith("ForObjectDetection") or config is None:
            return None
        softmax = config.model_type in _WITH_NOTHING
        return Detection(
            boxes=Field("pred_boxes"),
            scores=Field("logits"),
            box_format="cxcywh",
            normalised=True,
            activation="softmax" if softmax else "sigmoid",
            background=-1 if softmax else None,
            score_threshold=0.5,
            max_detections=int(getattr(config, "num_queries", 0) or getattr(config, "num_detection_tokens", 100)),
            best_class_only=softmax,
        )


def _model_classes() -> dict[str, str]:
    """Model type -> name of its class, by the tables of names: nothing else is imported."""
    auto = import_family("transformers.models.auto.modeling_auto", "transformers")
    classes: dict[str, str] = {}
    for task in reversed(_TASKS):
        for kind, found in getattr(auto, task).items():
            classes[kind] = found if isinstance(found, str) else found[0]
    return classes


def _pixels(model: nn.Module, batch: int) -> Example:
    size = getattr(getattr(model, "config", None), "image_size", None) or _IMAGE_SIDE
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    shape = (batch, image_channels(model), int(height), int(width))
    return Example((), {"pixel_values": random_input(shape, like=reference_tensor(model))})
