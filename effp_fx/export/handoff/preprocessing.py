"""How a picture becomes the network's input: told by the user, or what the model's family does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from effp_fx.errors import ExportError
from effp_fx.models import adapter_for

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """input = (pixel * scale - mean) / std, after the picture was brought to the input's size."""

    scale: float = 1 / 255
    """Pixels are 0 to 255."""
    mean: Three = (0.0, 0.0, 0.0)
    """In the order of `color`, after scaling."""
    std: Three = (1.0, 1.0, 1.0)
    color: str = "RGB"
    """"RGB" or "BGR"."""
    resize: str = "stretch"
    """"stretch" ignores the picture's proportions, "letterbox" keeps them and fills the rest."""
    align: str = "centre"
    """Where a letterboxed picture lies: "centre", or "corner" (left and top)."""
    pad_value: int = 114
    """What fills the rest, 0 to 255."""

    def __post_init__(self) -> None:
        _check("resize", self.resize, ("stretch", "letterbox"))
        _check("color", self.color, ("RGB", "BGR"))
        _check("align", self.align, ("centre", "corner"))
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise ExportError(
                "mean and std are three numbers each, std none of them 0", seen=f"mean={self.mean}, std={self.std}"
            )

    def as_json(self, height: int, width: int) -> dict[str, Any]:
        """What the manifest holds, for an input of this size."""
        return {
            "align": self.align,
            "color": self.color,
            "height": height,
            "mean": list(self.mean),
            "pad_value": self.pad_value,
            "resize": self.resize,
            "scale": self.scale,
            "std": list(self.std),
            "width": width,
        }


def of_family(model: nn.Module) -> tuple[Preprocess, str | None]:
    """What the model's family does, and a note where nobody knows.

    torchvision's detectors normalise by themselves and take values from 0 to 1; those with a fixed size stretch, the
    others keep proportions. Ultralytics letterboxes. Hugging Face models are prepared as their image processor is by
    default.
    """
    adapter = adapter_for(model)
    family = adapter.name if adapter else None
    if family == "ultralytics":
        return Preprocess(resize="letterbox"), None
    if family == "torchvision":
        transform: Any = getattr(model, "transform", None)
        fixed = transform is None or getattr(transform, "fixed_size", None) is not None
        return Preprocess(resize="stretch" if fixed else "letterbox", align="corner"), None
    if family == "transformers":
        found = _processor(getattr(model, "config", None))
        if found is not None:
            return found, None
    return Preprocess(), "how pictures are prepared was not said: RGB, 0 to 1, stretched to the input's size is assumed"


def _processor(config: Any) -> Preprocess | None:
    """Scale, mean and std of the image processor that belongs to a configuration; its weights are not asked for."""
    try:
        from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

        kinds = IMAGE_PROCESSOR_MAPPING[type(config)]
        named = kinds.values() if isinstance(kinds, dict) else kinds
        processor = next(kind for kind in reversed(list(named)) if kind is not None)()
        made = Preprocess(scale=float(processor.rescale_factor))
        if processor.do_normalize:
            mean, std = (tuple(float(v) for v in getattr(processor, name)) for name in ("image_mean", "image_std"))
            made = replace(made, mean=mean, std=std)  # type: ignore[arg-type]  # three numbers: __post_init__ looks
        return made
    except (ImportError, KeyError, AttributeError, TypeError, StopIteration, ExportError):
        return None  # another version of transformers keeps them elsewhere


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ExportError(f"{name} of the preprocessing is not known", seen=repr(value), expected=" or ".join(known))
