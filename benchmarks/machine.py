"""What a table of measurements must say about where it was measured: processor, cores, versions, date and command."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib import metadata


def describe(packages: tuple[str, ...] = ("torch", "torchvision", "torch-pruning")) -> dict[str, str]:
    """The machine and the run, as text by name, in the order in which the tables print it."""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in packages),
        "date": datetime.date.today().isoformat(),
        "command": command(),
    }


def processor() -> str:
    """The processor's own name for itself, from the kernel where it tells, else from the platform."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def command() -> str:
    """The command that started this process, as it can be typed again in the root of the repository."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    start = f"python -m {spec.name}" if spec is not None else f"python {sys.argv[0]}"
    return " ".join([start, *map(shlex.quote, sys.argv[1:])])


def as_markdown(facts: dict[str, str]) -> str:
    """The facts as a bulleted list."""
    return "\n".join(
        f"- {name}: `{value}`" if name == "command" else f"- {name}: {value}" for name, value in facts.items()
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
