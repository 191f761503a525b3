"""Runs the packed inputs through the network on this machine and compares with what PyTorch and ONNX Runtime gave.

    python3 check.py                        with the newest engine, or ONNX Runtime where there is none
    python3 check.py --runtime onnxruntime

Exit status 0: every output agrees. 1: one does not, or a file was altered or is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from runtime import images
from runtime.bundle import Bundle, Failure, here
from runtime.detections import Detections, agreement, detect
from runtime.engine import open_engine

REFERENCES = ("pytorch", "onnxruntime")


class Row(NamedTuple):
    """One comparison."""

    what: str
    against: str
    error: float
    """Of an output: the largest difference over its largest value. Of detections: the part without a partner."""
    allowed: float
    passed: bool
    note: str = ""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="check.py"
    )
    parser.add_argument("--runtime", choices=("auto", "tensorrt", "onnxruntime"), default="auto")
    parser.add_argument("--engine", type=Path, help="an engine file; default: the newest in engines/")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="how closely to compare")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def relative(found: Any, wanted: Any) -> float:
    """The largest difference over the largest value; infinite where shapes differ or a number is missing."""
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    one, two = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, np.abs(one - two))
    finite = np.abs(two[np.isfinite(two)])
    scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    most = float(gap.max())
    return most / scale if np.isfinite(most) else float("inf")


def check_preparation(bundle: Bundle, samples: dict[str, Any]) -> list[Row]:
    """Whether this machine makes the same input of the packed pictures."""
    taken = bundle.image_input
    if taken is None or "pictures" not in samples:
        return []
    packed = samples[f"input/{taken['name']}"]
    made = [images.prepare(picture, taken["preprocess"])[0] for picture in samples["pictures"]]
    error = max(relative(np.broadcast_to(one, two.shape), two) for one, two in zip(made, packed))
    return [Row("preparation of pictures", "the packed inputs", error, 1e-5, error <= 1e-5)]


def run_samples(bundle: Bundle, engine: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs for each packed input."""
    inputs = {item["name"]: samples[f"input/{item['name']}"] for item in bundle.manifest["inputs"]}
    count = len(next(iter(inputs.values())))
    return [engine.run({name: values[at] for name, values in inputs.items()}) for at in range(count)]


def found_in(bundle: Bundle, outputs: dict[str, Any]) -> Detections | None:
    """The detections in these outputs; None where they are raw heads or no picture's."""
    taken = bundle.image_input
    if bundle.decoding is None or taken is None:
        return None
    meanings = {item["name"]: item["meaning"] for item in bundle.manifest["outputs"]}
    size = (int(taken["preprocess"]["width"]), int(taken["preprocess"]["height"]))
    return detect(outputs, meanings, bundle.decoding, size)[0]


def compare(bundle: Bundle, results: list[dict[str, Any]], samples: dict[str, Any], precision: str) -> list[Row]:
    """All comparisons with one or both references."""
    allowed = bundle.manifest["tolerances"][precision]
    rows = []
    for source in REFERENCES:
        names = [name for name in results[0] if f"{source}/{name}" in samples]
        wanted = [{name: samples[f"{source}/{name}"][at] for name in names} for at in range(len(results))]
        same = detections_row(bundle, results, wanted, source, allowed) if len(names) == len(results[0]) else None
        errors = {name: max(relative(one[name], two[name]) for one, two in zip(results, wanted)) for name in names}
        judge = same if unordered(bundle) else None
        rows += [output_row(name, source, error, float(allowed["relative"]), judge) for name, error in errors.items()]
        if same is not None:
            near = all(error <= allowed["relative"] for error in errors.values())
            rows.append(excused(same) if near else same)
    if not rows:
        raise Failure("the packed samples hold no reference for any output of the network")
    return rows


def unordered(bundle: Bundle) -> bool:
    """Whether the network itself chooses its rows by score, so that near ties bring them in another order."""
    meanings = {str(item["meaning"]) for item in bundle.manifest["outputs"]}
    queries = bundle.decoding is not None and bundle.decoding["iou_threshold"] is None
    return queries or "detection boxes" in meanings


def output_row(name: str, source: str, error: float, allowed: float, same: Row | None) -> Row:
    """One output; where near ties fall otherwise, its rows come in another order, and the detections tell."""
    if error > allowed and same is not None and same.passed:
        return Row(name, source, error, allowed, True, "rows differ at near ties, the detections are the same")
    return Row(name, source, error, allowed, error <= allowed)


def excused(row: Row) -> Row:
    """Detections chosen from outputs that agree: where they differ, scores or overlaps are at a threshold, or tie."""
    return row if row.passed else row._replace(passed=True, note="near ties; what they are chosen from agrees")


def detections_row(
    bundle: Bundle, results: list[dict[str, Any]], wanted: list[dict[str, Any]], source: str, allowed: dict[str, float]
) -> Row | None:
    """Detections compared as sets."""
    paired = total = 0
    for one, two in zip(results, wanted):
        found, packed = found_in(bundle, one), found_in(bundle, two)
        if found is None or packed is None:
            return None
        pairs, count = agreement(found, packed, allowed["score"], allowed["overlap"])
        paired, total = paired + pairs, total + count
    if not total:
        return None
    error = 1 - paired / total
    return Row(f"detections ({total // 2})", source, error, allowed["detections"], error <= allowed["detections"])


def show(rows: list[Row], title: str) -> None:
    """The table."""
    wide = max(len(row.what) for row in rows)
    print(title)
    for row in rows:
        verdict = "pass" if row.passed else "FAIL"
        note = f"  {row.note}" if row.note else ""
        error = f"{row.error:9.2e} of {row.allowed:.0e} allowed"
        print(f"{verdict}  {row.what:{wide}}  {error}, against {row.against}{note}")


def main() -> int:
    """Check; 0 where all agree."""
    options = arguments()
    try:
        bundle = Bundle(here(__file__))
        bundle.verify()
        engine = open_engine(bundle, options.runtime, options.engine)
        precision = options.precision or engine.precision
        samples = bundle.samples()
        rows = check_preparation(bundle, samples)
        rows += compare(bundle, run_samples(bundle, engine, samples), samples, precision)
    except Failure as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 1
    passed = all(row.passed for row in rows)
    if options.json:
        data = {"runtime": engine.name, "precision": precision, "passed": passed}
        print(json.dumps(dict(data, rows=[row._asdict() for row in rows])))
    else:
        count = len(bundle.manifest["files"])
        show(rows, f"{count} files are those that were packed; {engine.name}, compared at {precision}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
