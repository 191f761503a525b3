"""Measures the ranges of every tensor with TensorRT's entropy calibrator and writes them for `./build.sh --int8`.

    python3 calibration/calibrate.py                       on the pictures that were packed (calibration/images.npy)
    python3 calibration/calibrate.py --images folder       on your own; some hundred of what the camera will see

Needs TensorRT; writes calibration/model.cache. The ranges belong to this model and this TensorRT.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime import images
from runtime.bundle import Bundle, Failure, here, shape_of
from runtime.engine import Cuda


def pictures(bundle: Bundle, folder: Path | None) -> Iterator[Any]:
    """Network inputs, one at a time."""
    taken = bundle.image_input
    if taken is None:
        raise Failure("this model takes no picture, so there is nothing to calibrate on")
    how = taken["preprocess"]
    if folder is not None:
        for path in images.files(folder):
            yield images.prepare(images.read(path), how)[0]
        return
    packed = bundle.folder / "calibration" / "images.npy"
    if not packed.is_file():
        raise Failure("no pictures were packed: give --images FOLDER with some hundred of what the camera will see")
    for fitted in np.load(str(packed), allow_pickle=False, mmap_mode="r"):
        yield images.normalise(np.asarray(fitted), how)


def calibrator(trt: Any, bundle: Bundle, inputs: Iterator[Any], cache: Path) -> Any:
    """TensorRT's interface, fed from an iterator, on memory of the CUDA runtime."""
    taken: Any = bundle.image_input
    cuda = Cuda()
    stream = cuda.stream()

    class Entropy(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]  # TensorRT has no types
        """One picture a batch."""

        def __init__(self) -> None:
            super().__init__()
            self._memory: Any = None
            self.count = 0

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            values = next(inputs, None)
            if values is None:
                return None
            array = np.ascontiguousarray(np.broadcast_to(values, shape_of(taken)), dtype=np.float32)
            self._memory = self._memory or cuda.memory(array.nbytes)
            cuda.copy(self._memory, array, 1, stream)
            cuda.wait(stream)
            self.count += 1
            return [self._memory.address]

        def read_calibration_cache(self) -> bytes | None:
            return None  # measured anew each time

        def write_calibration_cache(self, data: Any) -> None:
            cache.write_bytes(bytes(data))

    return Entropy()


def calibrate(bundle: Bundle, folder: Path | None, cache: Path) -> int:
    """Build once in INT8, for the ranges alone; return how many pictures were looked at."""
    try:
        import tensorrt as trt
    except ImportError:
        raise Failure("calibration needs TensorRT; on JetPack: apt install python3-libnvinfer") from None
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(bundle.model.read_bytes()):
        errors = "; ".join(str(parser.get_error(at)) for at in range(parser.num_errors))
        raise Failure(f"TensorRT does not read {bundle.model.name}: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, bundle.manifest["target"]["workspace_mib"] << 20)
    config.set_flag(trt.BuilderFlag.INT8)
    config.int8_calibrator = made = calibrator(trt, bundle, pictures(bundle, folder), cache)
    if builder.build_serialized_network(network, config) is None or not cache.is_file():
        raise Failure("TensorRT did not calibrate; its log above says why")
    return int(made.count)


def main() -> int:
    """Calibrate; 0, or 1 with one line that says what is in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="your own pictures")
    options = parser.parse_args()
    try:
        bundle = Bundle(here(__file__))
        bundle.verify()
        cache = bundle.folder / "calibration" / "model.cache"
        count = calibrate(bundle, options.images, cache)
    except Failure as error:
        print(f"calibrate.py: {error}", file=sys.stderr)
        return 1
    print(f"{count} pictures looked at; written: {cache}\nNow: ./build.sh --int8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
