"""What every test runs under: offline, one thread, one seed, and the golden texts."""

import os

# Before anything imports torch, transformers or ultralytics: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    YOLO_OFFLINE="true",
    YOLO_AUTOINSTALL="false",
    YOLO_VERBOSE="false",
    MPLBACKEND="Agg",
    NO_COLOR="1",
    COLUMNS="160",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import difflib
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

# Ultralytics writes its settings where it is told, so never into the home of whoever runs the tests.
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="effp_fx-tests-"))

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# The same networks on every machine, each as slow as it needs to be. --hypothesis-profile=default draws new ones.
hypothesis.settings.register_profile(
    "effp_fx",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("effp_fx")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes the golden texts instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden instead of comparing with it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the golden texts is a golden test, so `make golden` finds it without a second mark."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.golden)


@pytest.fixture(autouse=True)
def same_start() -> None:
    """The same random numbers for a test, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("name", text)`: the text equals tests/golden/name.txt, or the test fails with the lines that differ."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path} is not there: look at the text below, then `make golden`\n\n{text}", pytrace=False)
        before = path.read_text(encoding="utf-8")
        if before != text:
            lines = difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "now", lineterm="", n=2)
            pytest.fail("\n".join(lines), pytrace=False)

    return compare
