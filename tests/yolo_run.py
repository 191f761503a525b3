"""A YOLO of a few thousand weights, scenes of 64 pixels, and arguments under which Ultralytics trains in seconds."""

from pathlib import Path
from typing import Any

from effp_fx.data import write_scenes

SIDE = 64


def narrow(folder: Path, name: str = "yolov8n.yaml", width: float = 0.125) -> str:
    """The yaml that Ultralytics ships under a name, narrower: the same layers and connections."""
    import ultralytics
    import yaml

    names = (name, name.replace("n.", ".").replace("n-", "-"))
    root = Path(ultralytics.__file__).parent / "cfg" / "models"
    found = next(path for path in root.rglob("*.yaml") if path.name in names)
    content = yaml.safe_load(found.read_text())
    content["scales"] = {"n": [0.33, width, 256]}
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return str(path)


def scenes(folder: Path) -> str:
    """The data.yaml of sixteen images to train on and eight to judge by."""
    root = write_scenes(folder / "scenes", images=16, val_images=8, test_images=1, size=SIDE, layout="yolo")
    return str(root / "data.yaml")


def arguments(data: str, folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """Of `train`: four batches an epoch, of which two make a step once it is warm."""
    plain: dict[str, Any] = {"epochs": 3, "imgsz": SIDE, "batch": 4, "nbs": 8, "optimizer": "SGD", "lr0": 0.01}
    quiet = {"workers": 0, "plots": False, "verbose": False, "amp": False}
    return {"data": data, **plain, **quiet, "project": str(folder), "name": name, **more}
