"""`effp-fx bench`: accuracy of all methods, latency, compile time; without one of these words it times a model."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from effp_fx.cli import bench_accuracy, bench_compile, bench_latency

_DEFAULT = "latency"


class _Group(TyperGroup):
    """Takes `bench MODEL` for `bench latency MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of what is none."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="bench",
    cls=_Group,
    rich_markup_mode=None,
    help="Measure mAP of every pruning method, latency, or the compiler's time; each with --json. "
    "`bench MODEL` is `bench latency MODEL`.",
)
app.command("accuracy")(bench_accuracy.accuracy)
app.command("latency")(bench_latency.latency)
app.command("compile")(bench_compile.compile_time)
