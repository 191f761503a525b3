"""Plain Ultralytics, effp_fx out of reach: what `python plain_yolo.py best.pt data.yaml FOLDER` finds, as JSON."""

import importlib.abc
import json
import sys
from typing import Any


class _NoEffp(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname.partition(".")[0] == "effp_fx":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(path: str, data: str, folder: str) -> dict[str, Any]:
    sys.meta_path.insert(0, _NoEffp())
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(1)
    quiet = {"imgsz": 64, "batch": 4, "workers": 0, "plots": False, "verbose": False, "project": folder}

    def weights(yolo: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(value.shape) for value in yolo.model.parameters())

    yolo = YOLO(path)
    found: dict[str, Any] = {"weights": sum(value.numel() for value in yolo.model.parameters())}
    found["val"] = yolo.val(data=data, name="val", **quiet).results_dict
    found["predicted"] = len(yolo.predict(torch.rand(1, 3, 64, 64), imgsz=64, verbose=False))
    found["onnx"] = yolo.export(format="onnx", imgsz=64, simplify=False)
    more = YOLO(path)
    before = weights(more)
    more.train(data=data, epochs=1, name="more", optimizer="SGD", lr0=0.0, warmup_bias_lr=0.0, **quiet)
    found["same sizes after train"] = weights(more) == before
    again = YOLO(f"{folder}/more/weights/last.pt")
    found["same sizes in its file"] = weights(again) == before
    image = torch.rand(1, 3, 64, 64)
    one, two = (model.model.eval()(image)[0] for model in (YOLO(path), again))
    found["largest change by a rate of zero"] = float((one - two).abs().max())
    again.fuse()
    found["fused"] = again.model.is_fused()
    found["effp_fx"] = "effp_fx" in sys.modules
    return found


if __name__ == "__main__":
    result = main(*sys.argv[1:])
    print("\n" + json.dumps(result))
