"""Ultralytics: YOLO and RT-DETR from the yaml files that the package ships, from your own yaml, or from a .pt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from effp_fx.errors import ModelNameError
from effp_fx.inputs import Example, random_input
from effp_fx.models.detection import Detection, Field
from effp_fx.models.registry import Adapter, image_channels, is_from, reference_tensor
from effp_fx.models.spec import import_family, unknown_name, wrong_options

_IMAGE_SIDE = 320  # a multiple of every stride (8 to 64), and quick on a CPU
_CLASS_SIDE = 224
# Patterns in a yaml's name -> the class in ultralytics.nn.tasks; the first that fits.
_TASKS = (
    ("yoloe.*-seg", "YOLOESegModel"),
    ("yoloe", "YOLOEModel"),
    ("-world", "WorldModel"),
    ("rtdetr", "RTDETRDetectionModel"),
    ("-seg", "SegmentationModel"),
    ("-pose", "PoseModel"),
    ("-obb", "OBBModel"),
    ("-cls", "ClassificationModel"),
    ("-sem", "SemanticSegmentationModel"),
    ("-depth", "DepthModel"),
)


class UltralyticsAdapter(Adapter):
    """YOLO v3 to v12 and 26, RT-DETR. Options: ``nc`` (classes), ``ch`` (image channels).

    Both the ``YOLO`` object and the ``DetectionModel`` inside it are known; the first is a wrapper whose ``train``
    starts a training run and whose call reads images from disk, so the network is its submodule ``model``.
    """

    name: ClassVar[str] = "ultralytics"

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build from ``yolo11n.yaml``-like names, a path to a yaml, or a ``.pt`` on this machine; nothing is fetched.

        A ``.pt`` is a pickle that Ultralytics reads with its own loader: only open files that you trust.

        Raises:
            ModelNameError: no such yaml or file, or options that the class does not take.
        """
        tasks = import_family("ultralytics.nn.tasks", "ultralytics")
        if name.endswith(".pt"):
            return _from_checkpoint(tasks, name, options)
        if not Path(name).is_file() and name not in _shipped():
            raise unknown_name(self.name, name, _shipped())
        kind = next((kind for word, kind in _TASKS if re.search(word, Path(name).stem)), "DetectionModel")
        try:
            model: nn.Module = getattr(tasks, kind)(name, verbose=False, **options)
        except TypeError as error:
            raise wrong_options(self.name, name, error) from error
        return model.eval()

    def knows(self, model: nn.Module) -> bool:
        """Say whether the class comes from ``ultralytics``."""
        return is_from(model, "ultralytics")

    def rebind(self, model: nn.Module) -> None:
        """Blocks of the C2f kind hold the size that they split at, which their export alone reads."""
        for module in model.modules():
            block: Any = module
            if hasattr(block, "forward_split") and isinstance(getattr(block, "c", None), int):
                block.c = block.cv1.conv.out_channels // 2

    def network_path(self, model: nn.Module) -> str:
        """Return ``"model"`` for the YOLO wrapper object, else ``""``."""
        return "model" if is_from(model, "ultralytics.engine") else ""

    def example(self, model: nn.Module) -> Example:
        """Return one image, (1, C, 320, 320); 224 for classifiers."""
        return self._images(model, 1)

    def train_example(self, model: nn.Module) -> Example:
        """Return two images: in train mode the network gives its raw maps, which need no targets."""
        return self._images(model, 2)

    def detection(self, model: nn.Module) -> Detection | None:
        """Say how plain detectors are read; thresholds are the defaults of `yolo predict`.

        Networks that suppress nothing (YOLO26, RT-DETR, v10 where it runs end to end) give six columns for each
        detection, the others (batch, 4 + classes, anchors).
        """
        path = self.network_path(model)
        network: Any = model.get_submodule(path) if path else model
        if type(network).__name__ not in ("DetectionModel", "RTDETRDetectionModel", "YOLOEModel", "WorldModel"):
            return None
        head = network.model[-1]
        queries = type(network).__name__ == "RTDETRDetectionModel"
        if queries or head.end2end:
            return Detection(
                boxes=Field(0, (0, 4)),
                scores=Field(0, (4, 5)),
                labels=Field(0, (5, 6)),
                box_format="cxcywh" if queries else "xyxy",
                normalised=queries,
                score_threshold=0.25,
                max_detections=int(head.num_queries if queries else head.max_det),
                candidates=None if queries else int(head.max_det),
                candidates_per="anchor",
            )
        return Detection(
            boxes=Field(0, (0, 4), dim=1),
            scores=Field(0, (4, 4 + int(head.nc)), dim=1),
            box_format="cxcywh",
            iou_threshold=0.7,
            score_threshold=0.25,
            max_detections=300,
            best_class_only=True,
        )

    def _images(self, model: nn.Module, batch: int) -> Example:
        path = self.network_path(model)
        network = model.get_submodule(path) if path else model
        side = _CLASS_SIDE if is_from(network, "ultralytics") and "Classif" in type(network).__name__ else _IMAGE_SIDE
        shape = (batch, image_channels(network), side, side)
        return Example((random_input(shape, like=reference_tensor(network)),))


def _from_checkpoint(tasks: Any, name: str, options: dict[str, Any]) -> nn.Module:
    if options:
        raise ModelNameError("a .pt holds a finished model and takes no options", where=f"ultralytics:{name}")
    if not Path(name).is_file():  # Ultralytics would download it
        raise ModelNameError(f"there is no file {name}", where=f"ultralytics:{name}")
    model: nn.Module = tasks.load_checkpoint(name)[0]
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # checkpoints are saved frozen
    return model.eval()


def _shipped() -> list[str]:
    """Names of the yaml files in the package, with a size letter where the yaml lists scales."""
    yaml = import_family("yaml", "ultralytics")
    root = Path(import_family("ultralytics", "ultralytics").__file__).parent / "cfg" / "models"
    names = set()
    for path in root.rglob("*.yaml"):
        names.add(path.name)
        for scale in yaml.safe_load(path.read_text()).get("scales", ()):
            if not re.match(rf"yolo[a-z-]*\d+{scale}", path.name):  # yolov10n.yaml bears its letter
                names.add(re.sub(r"^(yolo[a-z-]*\d+)", rf"\g<1>{scale}", path.name))
    return sorted(names)
