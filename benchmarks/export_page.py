"""The page about exports: from the rows of export.py to Markdown. Knows no model and measures nothing."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from benchmarks import machine

Row = dict[str, Any]
BOUND = 1e-4

SCENES = """\
The `full` files beside the model in PyTorch, on scenes of the generator (`effp_fx.data`), prepared as the family does.
*differ*: detections without a partner on the other side of the same class, score and box within 1e-3. *mAP*:
mAP@[.5:.95] of either against one truth:

- *drawn*: the objects that were drawn; for the detectors that were trained on such scenes.
- *own*: a random network knows no drawn object. Its truth is what it detects itself, in PyTorch, in the same pictures
  with a little noise (normal, 2 levels of 256): the best 100 of each picture. The number says how much that noise
  moves; what counts is that file and model have the same.
"""

LEGEND = """\
Opset 17, batch 1, small images where the detector takes them. Pruned: `effp_fx.prune(model, target_flops=0.5)`; the
detectors named *trained* learned drawn scenes for a minute or two, the pruned ones in one session. Each file has passed
onnx.checker in full mode, and ran in ONNX Runtime on the example, a drawn scene, and on two random inputs.

All others have random weights: every scale, shift and bias is drawn, kernels are moved towards their mean (the offsets
of deformable attention towards 0), norms have the statistics of 32 drawn scenes (SSD300: 8), and the layers of the
heads are shifted and scaled so that scores spread and boxes are of some strides. With weights as they are initialised a
deep network multiplies rounding errors (YOLOv10n: float32 was 1.4e-4 away from float64 in PyTorch alone) and hundreds
of scores are 1 exactly: that tells nothing of a file.

- **network**: up to the raw heads. **decoded**: boxes and scores of every anchor. **full**: detections, with
  NonMaxSuppression where the family suppresses.
- **nodes**: as the exporter wrote them, and after simplification.
- **error**: ONNX Runtime against PyTorch, the largest over all outputs, relative to the largest value of an output. For
  full files it is that of boxes and scores. **noise**: what PyTorch itself loses by computing in float32, against
  float64 (of the worst output): an error of that size says nothing of the file.
- **detections**: how many of the model's own were compared, and how many have no partner in the file of the same class,
  score and box within 1e-3. Models that choose none by themselves (YOLO, DETR) are compared with the same choice in
  PyTorch.
- **TRT 8.5, 8.6, 10**: the worst verdict of `check_tensorrt` over the nodes (static, from the tables of NVIDIA's
  parser; TensorRT itself was not run). These files are written for ONNX Runtime: 8.5 refuses the choice of detections
  for a TopK whose K is computed; `target="jetson-xavier-nx"` writes EfficientNMS_TRT in its place.
- **DLA**: the share of the multiply-accumulates that the Xavier's DLA does in FP16.
"""


def page(facts: dict[str, str], rows: list[Row]) -> str:
    """The whole page."""
    made_by = "Written by `make bench-export`; the numbers are in [export.json](export.json)."
    parts = ["# Exports", made_by, machine.as_markdown(facts), LEGEND.strip(), "## In short", summary(rows)]
    judged = [row for row in rows if "scenes" in row]
    if judged:
        parts += ["## On drawn scenes", SCENES.strip(), scenes(judged)]
    for model, members in groupby(rows, key=lambda row: row["model"]):
        found = list(members)
        size = f", {found[0]['side']} x {found[0]['side']} pixels" if found[0]["side"] else ""
        parts += [f"## {model}", f"`{found[0]['spec']}`{size}", table(found), notes(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(rows: list[Row]) -> str:
    """How many files of each part there are, and how many keep the bound."""
    lines = [
        "| part | files | error at most 1e-4 | worst error | detections compared | differ |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for part in ("network", "decoded", "full"):
        found = [row for row in rows if row["part"] == part and "refused" not in row]
        if not found:
            continue
        kept = sum(row["relative"] <= BOUND for row in found)
        pairs = [row["detections"] for row in found if row["detections"]]
        compared, differ = (sum(pair[at] for pair in pairs) for at in (0, 1))
        worst = max(row["relative"] for row in found)
        counts = f"{compared} | {differ}" if pairs else "- | -"
        lines.append(f"| {part} | {len(found)} | {kept} | {worst:.1e} | {counts} |")
    refused = [row for row in rows if "refused" in row]
    told = f"\n\nNot written: {len(refused)}, each with its reason below." if refused else ""
    return "\n".join(lines) + told


def scenes(rows: list[Row]) -> str:
    """Each file of detections beside its model, and how many have the same mAP."""
    head = ["", "", "scenes", "truth", "detections", "differ", "mAP, PyTorch", "mAP, ONNX Runtime", "difference"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|--:|---|--:|--:|--:|--:|--:|"]
    gaps = []
    for row in rows:
        found = row["scenes"]
        gaps.append(abs(found["map_file"] - found["map_model"]))
        counts = f"{found['images']} | {found['truth']} | {found['detections']} | {found['differ']}"
        both = f"{found['map_model']:.5f} | {found['map_file']:.5f}"
        lines.append(f"| {row['model']} | {row['kind']} | {counts} | {both} | {gaps[-1]:.0e} |")
    kept = sum(gap <= BOUND for gap in gaps)
    told = f"\n\nThe same mAP within 1e-4: {kept} of {len(gaps)}. "
    differ, compared = (sum(row["scenes"][name] for row in rows) for name in ("differ", "detections"))
    return "\n".join(lines) + told + f"Detections that differ: {differ} of {compared}."


def table(rows: list[Row]) -> str:
    """The files of one model."""
    head = ["", "part", "nodes", "MB", "error", "noise", "detections", "TRT 8.5", "TRT 8.6", "TRT 10", "DLA"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|--:|--:|--:|--:|--:|---|---|---|--:|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)])


def _cells(row: Row) -> list[str]:
    if "refused" in row:
        return [row["kind"], row["part"], "refused", *["-"] * 8]
    pair = row["detections"]
    verdicts = row["tensorrt"]
    dla = verdicts["jetson-xavier-nx"]["dla"].get("FP16")
    return [
        row["kind"],
        row["part"],
        f"{row['nodes_before']} → {row['nodes']}",
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['relative']:.1e}",
        f"{row['noise']:.1e}",
        f"{pair[0]}, {pair[1]} differ" if pair else "-",
        *[verdicts[name]["verdict"] for name in ("jetson-xavier-nx", "jetson-orin", "tensorrt-10")],
        f"{dla:.0%}" if dla is not None else "-",
    ]


def notes(rows: list[Row]) -> str:
    """What a reader of the table must know, once each."""
    said = [f"{row['part']}: {row['refused']}" for row in rows if "refused" in row]
    said += [f"{row['kind']}, {row['part']}: {note}" for row in rows for note in row.get("notes", ())]
    return "\n".join(f"- {line}" for line in dict.fromkeys(said))
