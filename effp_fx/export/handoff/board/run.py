"""Runs the detector on pictures, a folder, a video or a camera: prepare, run, decode, draw, time.

    python3 run.py                          the pictures that came with the model
    python3 run.py street.jpg more/         files and folders
    python3 run.py traffic.mp4              a video
    python3 run.py 0                        camera number 0

Needs numpy, and either TensorRT with an engine from build.sh, or ONNX Runtime. JPEG and PNG need Pillow or OpenCV,
videos and cameras need OpenCV.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
from runtime import images
from runtime.bundle import Bundle, Failure, here, shape_of
from runtime.detections import detect
from runtime.engine import open_engine
from runtime.timing import Times, table


class Frame(NamedTuple):
    """A picture and what to call the one that is drawn from it."""

    name: str
    picture: Any


class Found(NamedTuple):
    """Detections of one picture, boxes in its own pixels."""

    boxes: Any
    scores: Any
    labels: Any


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="run.py"
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="picture, folder, video, or number of a camera")
    parser.add_argument("--runtime", choices=("auto", "tensorrt", "onnxruntime"), default="auto")
    parser.add_argument("--engine", type=Path, help="an engine file; default: the newest in engines/")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: as many as there are cores")
    parser.add_argument("--output", type=Path, default=Path("drawn"), help="folder for the drawn pictures")
    parser.add_argument("--score", type=float, help="least score of a detection; default: the model's own")
    parser.add_argument("--iou", type=float, help="overlap above which the weaker box goes")
    parser.add_argument("--max", type=int, help="most detections in a picture")
    parser.add_argument("--frames", type=int, help="stop a video or camera after so many frames")
    parser.add_argument("--show", action="store_true", help="show frames in a window (OpenCV)")
    parser.add_argument("--warmup", type=int, default=3, help="runs before the times count")
    parser.add_argument("--repeat", type=int, default=1, help="run every picture so often, for steadier times")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture, times last")
    return parser.parse_args()


class Detector:
    """The network with its preparation and decoding."""

    def __init__(self, bundle: Bundle, engine: Any, options: argparse.Namespace, times: Times) -> None:
        self._bundle = bundle
        self._engine = engine
        self._times = times
        self._input = bundle.image_input
        if self._input is None:
            raise Failure("this model takes no picture; check.py runs it on the packed inputs")
        self._meanings = {item["name"]: item["meaning"] for item in bundle.manifest["outputs"]}
        self._decoding = bundle.decoding
        if self._decoding is not None:
            given = {"score_threshold": options.score, "iou_threshold": options.iou, "max_detections": options.max}
            self._decoding = dict(self._decoding, **{key: value for key, value in given.items() if value is not None})

    def outputs(self, picture: Any) -> tuple[dict[str, Any], images.Placed]:
        """The network's raw outputs."""
        taken: Any = self._input
        with self._times.step("prepare"):
            values, placed = images.prepare(picture, taken["preprocess"])
            feed = np.broadcast_to(values, shape_of(taken))
        with self._times.step("network"):
            return self._engine.run({taken["name"]: feed}), placed

    def found(self, picture: Any) -> Found | None:
        """The detections; None for a network whose outputs are raw heads."""
        outputs, placed = self.outputs(picture)
        if self._decoding is None:
            return None
        how: Any = self._input
        size = (int(how["preprocess"]["width"]), int(how["preprocess"]["height"]))
        with self._times.step("decode"):
            made = detect(outputs, self._meanings, self._decoding, size)[0]
            return Found(placed.back(made.boxes), made.scores, made.labels)


def stills(bundle: Bundle, sources: list[str]) -> Iterator[Frame]:
    """Pictures from files and folders, or those that were packed."""
    if not sources:
        for number, picture in enumerate(bundle.samples()["pictures"]):
            yield Frame(f"sample_{number}", picture)
    for source in sources:
        path = Path(source)
        for file in images.files(path) if path.is_dir() else [path]:
            yield Frame(file.stem, images.read(file))


def moving(source: str) -> bool:
    """Whether a source is a video or a camera."""
    return source.isdigit() or source.startswith("/dev/video") or Path(source).suffix.lower() in images.VIDEOS


def captions(found: Found, names: dict[int, str]) -> list[str]:
    """What to write at each box."""
    labels = [int(label) for label in found.labels]
    return [f"{names.get(label, f'class {label}')} {score:.2f}" for label, score in zip(labels, found.scores)]


def as_json(name: str, found: Found | None, names: dict[int, str]) -> str:
    """One line for a picture."""
    if found is None:
        return json.dumps({"picture": name, "detections": None})
    rows = [
        {"label": int(label), "name": names.get(int(label)), "score": float(score), "box": [float(v) for v in box]}
        for box, score, label in zip(found.boxes, found.scores, found.labels)
    ]
    return json.dumps({"picture": name, "detections": rows})


def tell(name: str, found: Found | None, names: dict[int, str], as_lines: bool) -> None:
    """Print what was found in a picture."""
    if as_lines:
        print(as_json(name, found, names))
    elif found is not None:
        print(f"{name}: {len(found.scores)} detections" + "".join(f", {text}" for text in captions(found, names)[:5]))


def run_stills(detector: Detector, bundle: Bundle, options: argparse.Namespace, sources: list[str]) -> None:
    """Run and draw pictures."""
    names = bundle.class_names()
    for frame in stills(bundle, sources):
        for _ in range(max(options.repeat, 1)):
            found = detector.found(frame.picture)
        tell(frame.name, found, names, options.json)
        if found is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            drawn = images.draw(frame.picture, found.boxes, [int(x) for x in found.labels], captions(found, names))
            images.write_png(options.output / f"{frame.name}.png", drawn)


def run_moving(detector: Detector, bundle: Bundle, options: argparse.Namespace, source: str) -> None:
    """Run a video or a camera, write an MP4 beside it."""
    names = bundle.class_names()
    name = f"camera_{source}" if source.isdigit() else Path(source).stem
    writer: Any = None
    for number, picture in enumerate(images.frames(source)):
        if options.frames is not None and number >= options.frames:
            break
        found = detector.found(picture)
        tell(f"{name}_{number}", found, names, options.json)
        if found is None:
            continue
        drawn = images.draw(picture, found.boxes, [int(x) for x in found.labels], captions(found, names))
        if number == 0:
            options.output.mkdir(parents=True, exist_ok=True)
            writer = images.video_writer(options.output / f"{name}.mp4", drawn, 25.0)
        if writer is not None:
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
        if options.show and not images.show(drawn):
            break
    if writer is not None:
        writer.release()


def main() -> int:
    """Run; 0, or 1 with one line that says what is in the way."""
    options = arguments()
    try:
        bundle = Bundle(here(__file__))
        bundle.verify()
        engine = open_engine(bundle, options.runtime, options.engine, options.threads)
        times = Times()
        detector = Detector(bundle, engine, options, times)
        first = bundle.samples()["pictures"][0]
        for _ in range(max(options.warmup, 0)):
            detector.found(first)
        times.forget()
        films = [source for source in options.sources if moving(source)]
        others = [source for source in options.sources if not moving(source)]
        if others or not films:
            run_stills(detector, bundle, options, others)
        for film in films:
            run_moving(detector, bundle, options, film)
        report(bundle, engine, times, options)
        return 0
    except Failure as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1


def report(bundle: Bundle, engine: Any, times: Times, options: argparse.Namespace) -> None:
    """Print the times, and where the drawn pictures are."""
    summary = times.summary()
    if options.json:
        print(json.dumps({"runtime": engine.name, "precision": engine.precision, "times": summary}))
        return
    print(f"\n{engine.name}, {engine.precision}, batch 1")
    print(table(summary))
    if bundle.decoding is None:
        print("\nThe outputs of this file are raw heads: they are run and timed, but there is nothing to draw.")
    else:
        print(f"\ndrawn: {options.output}/")


if __name__ == "__main__":
    sys.exit(main())
