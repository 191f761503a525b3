"""What a session's set-up no longer needs goes back to the system."""

import platform
from pathlib import Path

import pytest

from effp_fx.session.free_memory import free_memory

STATUS = Path("/proc/self/status")


def resident() -> int:
    """KiB."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))


# Other C libraries have no call for it, and free_memory leaves them alone.
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to give memory back")
def test_what_nothing_refers_to_goes_back() -> None:
    class Node:
        def __init__(self) -> None:
            self.me = self  # a cycle: only the collector finds it
            self.values = [bytearray(60_000) for _ in range(2000)]  # each too small to be mapped by itself

    node = Node()
    pin = bytearray(60_000)  # at the end of the heap, so that it cannot simply shrink
    with_node = resident()
    del node
    free_memory()
    assert with_node - resident() > 80_000
    assert len(pin) == 60_000
