"""Try prune_trainer on each family and head of Ultralytics; write a row for each model into docs/results.

    python -m benchmarks.integrations_ultralytics [--models yolov8n.yaml,yolo11n-seg.yaml]

Every model is trained for three epochs on a few scenes and pruned to half its FLOPs; the process kills itself after the
first epoch, another one resumes; a third, without effp_fx, takes the compact checkpoint. A row has the keys `tool`,
`model`, `trains`, `target_met`, `equal`, `loads`, `val_equal`, `exports`, `resumes`, `note`; a cell is "yes", "no: ..."
or "-". Rows of models that are not run again stay.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.integrations_data import data_for

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "integrations_ultralytics.jsonl"
KEYS = ("tool", "model", "trains", "target_met", "equal", "loads", "val_equal", "exports", "resumes", "note")
MODELS = (
    "yolov8n.yaml",
    "yolo11n.yaml",
    "yolov10n.yaml",
    "yolo26n.yaml",
    "yolov8n-seg.yaml",
    "yolov8n-pose.yaml",
    "yolov8n-obb.yaml",
    "yolov8n-cls.yaml",
    "yolov5n.yaml",
    "yolo12n.yaml",
    "yolov9t.yaml",
    "yolo11n-seg.yaml",
    "yolo26n-pose.yaml",
    "rtdetr-resnet50.yaml",
)
TASKS = {"-seg": "segment", "-pose": "pose", "-obb": "obb", "-cls": "classify"}
IMAGES, SIDE, EPOCHS, LIMIT_S = 16, 64, 3, 2400
TARGET = 0.5


def main() -> int:
    """Run the models one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--no-kill", action="store_true", help="do not try to resume: that cell stays -")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "ARGUMENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        step, given = options.child
        print("\n" + json.dumps(_STEPS[step](**json.loads(given))))
        return 0
    for model in options.models.split(","):
        row = tried(model, kill=not options.no_kill)
        print(json.dumps(row), flush=True)
        keep(row)
    return 0


def keep(row: dict[str, str]) -> None:
    """Put a row into the file, in the place of an earlier one of the same model."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    rows = [one for one in rows if one["model"] != row["model"]] + [row]
    order = {name: index for index, name in enumerate(MODELS)}
    rows.sort(key=lambda one: order.get(one["model"], len(order)))
    RESULTS.write_text("".join(json.dumps(one) + "\n" for one in rows))


def tried(model: str, *, kill: bool) -> dict[str, str]:
    """The row of a model."""
    row = dict.fromkeys(KEYS, "-") | {"tool": "ultralytics", "model": model}
    task = next((task for word, task in TASKS.items() if word in model), "detect")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = data_for(task, folder, images=IMAGES, size=SIDE)
        last = folder / "run" / "weights" / "last.pt"
        begin = {"model": model, "data": data, "folder": place}
        done = child("train", folder, **begin, kill=kill)
        if kill:
            done = child("resume", folder, last=str(last)) if last.exists() else done
            row["resumes"] = said(done, "took the session over")
        if kill and "error" in done:
            done = child("train", folder, **begin, kill=False)
        row["trains"] = said(done, "trained")
        if "error" in done:
            return row
        row["target_met"] = "yes" if done["flops"] <= TARGET else f"no: {done['flops']:.1%} of the FLOPs"
        row["note"] = f"{done['flops']:.1%} of the FLOPs, {done['params']:.1%} of the parameters"
        paths = {"masked": done["masked"], "last": done["last"]}
        masked = child("masked", folder, **paths, data=data, folder=place)
        row["equal"], row["val_equal"] = said(masked, "equal"), said(masked, "val")
        plain = child("plain", folder, path=done["best"], data=data, folder=place)
        row["exports"], row["loads"] = said(plain, "exports"), said(plain, "loads")
    return row


def said(found: dict[str, Any], key: str) -> str:
    """A cell."""
    if "error" in found:
        return f"no: {found['error']}"
    return "yes" if found[key] is True else f"no: {found[key]}"


def child(step: str, cwd: Path, **arguments: Any) -> dict[str, Any]:
    """Run a step in a process of its own."""
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **quiet, "PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(cwd / "settings")}
    (cwd / "settings").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.integrations_ultralytics", "--child", step, json.dumps(arguments)]
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {LIMIT_S} s"}
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1][:200] if lines else f"exit status {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train(model: str, data: str, folder: str, kill: bool) -> dict[str, Any]:
    """Train and prune; with `kill` the process ends after the first epoch as by a power cut."""
    yolo = _yolo(model)
    if kill:
        yolo.add_callback("on_fit_epoch_end", lambda _: os.kill(os.getpid(), signal.SIGKILL))

    return _run(
        yolo,
        data=data,
        epochs=EPOCHS,
        imgsz=SIDE,
        batch=4,
        nbs=4,
        optimizer="AdamW",
        lr0=0.001,
        close_mosaic=1,
        project=folder,
        name="run",
        exist_ok=True,
    )


def resume(last: str) -> dict[str, Any]:
    """Go on after the kill."""
    return _run(_yolo(last), resume=True)


def _run(yolo: Any, **arguments: Any) -> dict[str, Any]:
    import torch

    from effp_fx.integrations.ultralytics import prune_trainer

    torch.set_num_threads(1)
    pruning = prune_trainer(yolo, target_flops=TARGET, end=0.6)
    began: list[int] = []

    def copy_masked(trainer: Any) -> None:
        trainer.last.with_name("masked.pt").write_bytes(trainer.last.read_bytes())

    yolo.add_callback("on_train_start", lambda _: began.append(pruning.session.step if pruning.session else 0))
    yolo.add_callback("on_model_save", copy_masked)
    yolo.train(workers=0, plots=False, **arguments)
    assert pruning.best is not None and pruning.last is not None
    return {
        "trained": True,
        "took the session over": began[0] > 0 or "it began anew",
        "flops": pruning.flops,
        "params": pruning.params,
        "best": str(pruning.best if pruning.best.exists() else pruning.last),
        "last": str(pruning.last),
        "masked": str(pruning.last.with_name("masked.pt")),
    }


def masked(masked: str, last: str, data: str, folder: str) -> dict[str, Any]:
    """Masked and compact network: the same images, by `effp_fx.verify`, and the plain tool's own numbers."""
    import torch

    import effp_fx

    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.rand(2, 3, 2 * SIDE, 2 * SIDE)
    compared = effp_fx.verify(*(_yolo(path).model.float() for path in (masked, last)), image)
    found = []
    for path in (masked, last):
        judged = _yolo(path).val(data=data, imgsz=SIDE, batch=4, workers=0, plots=False, project=folder, name="val")
        found.append({key: float(value) for key, value in judged.results_dict.items()})
    gap = max(abs(found[0][key] - found[1][key]) for key in found[0])
    return {
        "equal": compared.equal or f"relative error {compared.max_relative_error:.1e}",
        "val": gap < 1e-3 or f"they differ by {gap:.4f}",
    }


def plain(path: str, data: str, folder: str) -> dict[str, Any]:
    """ONNX run by ONNX Runtime; prediction, more training, fusing: all without effp_fx."""
    _without_effp()
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    yolo = _yolo(path)
    yolo.predict(torch.rand(1, 3, SIDE, SIDE), imgsz=SIDE, verbose=False)
    file = yolo.export(format="onnx", imgsz=SIDE, simplify=False)
    image = torch.rand(1, 3, SIDE, SIDE)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (got, *_) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        wanted = _yolo(path).model.eval()(image)
    while not isinstance(wanted, torch.Tensor):
        wanted = wanted[0]
    # RT-DETR hands out its best queries, and of two that score alike either comes first: compared in order of size too.
    pairs = [(torch.from_numpy(got), wanted), (torch.from_numpy(got).sort(1).values, wanted.sort(1).values)]
    worst = min(float((one - two).abs().max() / two.abs().max()) for one, two in pairs)
    more = _yolo(path)
    before = sorted(tuple(value.shape) for value in more.model.parameters())
    more.train(data=data, epochs=1, imgsz=SIDE, batch=4, workers=0, plots=False, project=folder, name="more")
    after = sorted(tuple(value.shape) for value in more.model.parameters())
    more.fuse()
    return {
        "exports": worst < 1e-2 or f"ONNX Runtime differs by {worst:.1e}",
        "loads": before == after or "train() builds another network",
    }


def _without_effp() -> None:
    sys.modules.pop("effp_fx", None)
    for name in [name for name in sys.modules if name.startswith("effp_fx.")]:
        del sys.modules[name]
    sys.modules["effp_fx"] = None  # type: ignore[assignment]  # how Python marks what cannot be imported


def _yolo(model: str) -> Any:
    import ultralytics

    return ultralytics.RTDETR(model) if "rtdetr" in Path(model).name else ultralytics.YOLO(model)


_STEPS = {"train": train, "resume": resume, "masked": masked, "plain": plain}

if __name__ == "__main__":
    sys.exit(main())
