"""What runs the network: a TensorRT engine on the board, ONNX Runtime anywhere."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle, Failure

_CUDA = ("libcudart.so", "libcudart.so.12", "libcudart.so.11.0", "/usr/local/cuda/lib64/libcudart.so")
_TO_DEVICE, _TO_HOST = 1, 2


class OnnxRuntime:
    """The ONNX file on the CPU."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base but this
            raise Failure(f"ONNX Runtime does not load {path.name}: {str(error).splitlines()[0]}") from error
        self._outputs: list[str] = [item.name for item in self._session.get_outputs()]

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds)))


class TensorRT:
    """An engine that build.sh made on this board; memory is handled by the CUDA runtime itself, through ctypes."""

    name = "tensorrt"

    def __init__(self, path: Path) -> None:
        import tensorrt

        self.precision = next((word for word in ("int8", "fp16") if "." + word in path.name), "fp32")
        self._trt = tensorrt
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        tensorrt.init_libnvinfer_plugins(self._logger, "")
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise Failure(f"{path.name} was built by another TensorRT or for another GPU: run ./build.sh here")
        self._context = self._engine.create_execution_context()
        self._cuda = Cuda()
        self._stream = self._cuda.stream()
        self._memory: dict[str, Memory] = {}
        names = [self._engine.get_tensor_name(at) for at in range(self._engine.num_io_tensors)]
        reads = tensorrt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == reads]
        self._outputs = [name for name in names if name not in self._inputs]

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        kept = []  # arrays must outlive the copies that are under way
        for name in self._inputs:
            array = np.ascontiguousarray(feeds[name], dtype=self._dtype(name))
            kept.append(array)
            if not self._context.set_input_shape(name, array.shape):
                raise Failure(f"the engine does not take {name} of shape {array.shape}")
            self._cuda.copy(self._room(name, array.nbytes), array, _TO_DEVICE, self._stream)
        results = {name: self._result(name) for name in self._outputs}
        if not self._context.execute_async_v3(self._stream):
            raise Failure("TensorRT did not run the engine; its log above says why")
        for name, array in results.items():
            self._cuda.copy(self._memory[name], array, _TO_HOST, self._stream)
        self._cuda.wait(self._stream)
        return results

    def _dtype(self, name: str) -> Any:
        # tensorrt.nptype names types that newer versions of numpy no longer have.
        wanted = self._engine.get_tensor_dtype(name)
        known = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT8": np.int8, "BOOL": np.bool_}
        known["INT64"] = np.int64
        for word, dtype in known.items():
            if wanted == getattr(self._trt.DataType, word, None):
                return dtype
        raise Failure(f"{name} is of type {wanted}, which numpy has not")

    def _result(self, name: str) -> Any:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise Failure(f"the size of {name} is known only after the run: export part='decoded'")
        array = np.empty(shape, dtype=self._dtype(name))
        self._room(name, array.nbytes)
        return array

    def _room(self, name: str, size: int) -> Memory:
        held = self._memory.get(name)
        if held is None or held.size < size:
            held = self._memory[name] = self._cuda.memory(size)
        self._context.set_tensor_address(name, held.address)
        return held


class Memory:
    """Memory on the device; freed with this object."""

    def __init__(self, library: Any, address: int, size: int) -> None:
        self._library = library
        self.address = address
        self.size = size

    def __del__(self) -> None:
        self._library.cudaFree(ctypes.c_void_p(self.address))


class Cuda:
    """The few calls of the CUDA runtime that are needed."""

    def __init__(self) -> None:
        self._library = _first_library()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def stream(self) -> int:
        """A new stream."""
        made = ctypes.c_void_p()
        self._check(self._library.cudaStreamCreate(ctypes.byref(made)), "a stream")
        return int(made.value or 0)

    def memory(self, size: int) -> Memory:
        """So many bytes on the device."""
        made = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(made), ctypes.c_size_t(max(size, 1))), f"{size} bytes")
        return Memory(self._library, int(made.value or 0), size)

    def copy(self, memory: Memory, array: Any, way: int, stream: int) -> None:
        """Start copying between an array and the device."""
        there, here = ctypes.c_void_p(memory.address), ctypes.c_void_p(array.ctypes.data)
        to, source = (there, here) if way == _TO_DEVICE else (here, there)
        size, on = ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream)
        self._check(self._library.cudaMemcpyAsync(to, source, size, ctypes.c_int(way), on), "a copy")

    def wait(self, stream: int) -> None:
        """Until all that was started on the stream is done."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)), "the run")

    def _check(self, status: int, what: str) -> None:
        if status:
            text = self._library.cudaGetErrorString(ctypes.c_int(status))
            raise Failure("CUDA failed at {}: {}".format(what, (text or b"unknown").decode()))


def _first_library() -> Any:
    for name in _CUDA:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Failure("the CUDA runtime (libcudart.so) is not found: add its folder to LD_LIBRARY_PATH")


def engines(bundle: Bundle) -> list[Path]:
    """The engines that build.sh has made, the newest first."""
    found = (bundle.folder / "engines").glob("*.engine")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def open_engine(bundle: Bundle, runtime: str = "auto", engine: Path | None = None, threads: int = 0) -> Any:
    """TensorRT where it and an engine are there, else ONNX Runtime; or what `runtime` names.

    Raises:
        Failure: what it takes is not installed, or there is no engine.
    """
    built = [engine] if engine else engines(bundle)
    have_tensorrt = importlib.util.find_spec("tensorrt") is not None
    if runtime == "tensorrt" or (runtime == "auto" and have_tensorrt and built):
        if not have_tensorrt:
            raise Failure("the Python package tensorrt is not installed; on JetPack: apt install python3-libnvinfer")
        if not built:
            raise Failure("no engine in engines/: run ./build.sh first")
        return TensorRT(built[0])
    if importlib.util.find_spec("onnxruntime") is None:
        hint = "run ./build.sh for an engine" if have_tensorrt else "on JetPack: apt install python3-libnvinfer"
        raise Failure(f"neither an engine with TensorRT nor ONNX Runtime is there: {hint}, or pip install onnxruntime")
    return OnnxRuntime(bundle.model, threads)
