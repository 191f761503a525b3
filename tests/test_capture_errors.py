"""What cannot be captured is said in words, with the line of the user's code where there is one."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effp_fx.capture import capture
from effp_fx.errors import CaptureError, InputError
from effp_fx.inputs import Example, as_example
from tests.exactness import Net
from tests.test_capture import image

c2 = nn.Conv2d


def _uncopyable() -> nn.Module:
    model = c2(3, 4, 1)
    model.lock = threading.Lock()  # type: ignore[assignment]  # not a tensor, which is the point
    return model


ERRORS: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "no module": (lambda: F.relu, image, CaptureError, "not a model"),
    "no parameters": (nn.ReLU, image, CaptureError, "the model has no parameters"),
    "a scripted part": (lambda: nn.Sequential(torch.jit.script(c2(3, 4, 1))), image, CaptureError, "a scripted module"),
    "lazy": (lambda: nn.LazyConv2d(4, 1), image, CaptureError, "a lazy parameter without a shape"),
    "on meta": (lambda: c2(3, 4, 1, device="meta"), image, CaptureError, "a parameter on the meta device"),
    "several devices": (
        lambda: nn.DataParallel(c2(3, 4, 1)),
        image,
        CaptureError,
        "a model wrapped for several devices",
    ),
    "compiled": (lambda: torch.compile(c2(3, 4, 1)), image, CaptureError, "a compiled module"),
    "quantised": (lambda: torch.ao.nn.quantized.Conv2d(3, 4, 1), image, CaptureError, "a quantised module"),
    "cannot be copied": (_uncopyable, image, CaptureError, "Conv2d cannot be copied"),
    "no tensor comes out": (
        lambda: Net(lambda m, x: [1, "two"], a=c2(3, 4, 1)),
        image,
        CaptureError,
        "the model's output holds no tensor",
    ),
    "no tensor goes in": (
        lambda: c2(3, 4, 1),
        lambda: Example((3, "x"), {}),
        InputError,
        "the example inputs hold no tensor",
    ),
    "empty batch": (
        lambda: c2(3, 4, 1),
        lambda: torch.zeros(0, 3, 8, 8),
        InputError,
        "the example inputs are an empty batch",
    ),
    "another device": (
        lambda: c2(3, 4, 1),
        lambda: torch.zeros(1, 3, 8, 8, device="meta"),
        InputError,
        "not on the device of the model",
    ),
    "another shape": (
        lambda: c2(3, 4, 1),
        lambda: torch.zeros(1, 5, 8, 8),
        CaptureError,
        "expected input.*to have 3 channels",
    ),
    "another type": (lambda: c2(3, 4, 1), lambda: torch.zeros(1, 3, 8, 8).half(), CaptureError, "inputs: float16"),
}


@pytest.mark.filterwarnings(
    "ignore:torch.jit:DeprecationWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore:torch.quantize_per_tensor",
    "ignore:torch.ao.quantization",
)
@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_captured_is_said_in_words(name: str) -> None:
    build, inputs, kind, text = ERRORS[name]
    with pytest.raises(kind, match=text):
        capture(build(), as_example(inputs()))


def test_a_failure_names_the_line() -> None:
    def fails(m: Any, x: Tensor) -> Tensor:
        raise KeyError("levels")

    with pytest.raises(CaptureError) as caught:
        capture(Net(fails, a=c2(3, 4, 1)), as_example(image()))
    assert "test_capture_errors.py" in str(caught.value) and "in fails" in str(caught.value)
    assert "KeyError: 'levels'" in str(caught.value)
