"""The files of a bundle that are the same for every model, build.sh with the values of this one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources

from effp_fx.errors import ExportError

_BOARD = ("build.sh", "check.py", "run.py", "calibration/calibrate.py")
_RUNTIME = ("__init__", "bundle", "detections", "engine", "images", "timing")


def read(settings: Mapping[str, str]) -> dict[str, bytes]:
    """The scripts by name; `settings` are put into the lines of build.sh that begin with their names."""
    root = resources.files("effp_fx.export.handoff").joinpath("board")
    names = (*_BOARD, *(f"runtime/{name}.py" for name in _RUNTIME))
    files = {name: root.joinpath(*name.split("/")).read_bytes() for name in names}
    script = files["build.sh"].decode()
    for name, value in settings.items():
        pieces = re.split(rf"^{name}=.*$", script, flags=re.MULTILINE)
        if len(pieces) != 2:
            seen = f"{len(pieces) - 1} lines that set {name}"
            raise ExportError("build.sh is not as it was installed", seen=seen, expected="one line")
        script = f"{name}={value}".join(pieces)
    return {**files, "build.sh": script.encode()}
