"""The command line, `effp-fx`: arguments to api to report. Exit status 0, 1 (it failed), 2 (usage), 130 (Ctrl-C)."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from effp_fx.cli import bench, check, compact, data, demo, evaluate, export, latency, prune, trace, train
from effp_fx.errors import EffpError
from effp_fx.plan import package_version

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_TRACEBACK = "--traceback"
# Wrong usage, and its parent: typer brings its own copy of click or takes the installed one, by its version.
_UsageError, _ClickError = typer.BadParameter.__mro__[1:3]

app = typer.Typer(
    name="effp-fx",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Trace any detector, find which of its channels stand or fall together, and cut them out exactly.",
    epilog="A MODEL is torchvision:NAME, ultralytics:FILE.yaml, timm:NAME, hf:NAME, effp:NAME, package.module:factory, "
    "file.py:factory, or a small.safetensors that effp-fx wrote.",
)
for _command in (
    trace.trace,
    prune.prune,
    train.train,
    compact.compact,
    export.export,
    check.check,
    latency.latency,
    demo.demo,
):
    app.command()(_command)
app.command("eval")(evaluate.evaluate)
app.add_typer(bench.app)
app.add_typer(data.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"effp-fx {package_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which version it is.")
    ] = False,
    show_traceback: Annotated[bool, typer.Option(_TRACEBACK, help="On failure show where, in Python.")] = False,
) -> None:
    """Options of all commands; `main` has taken --traceback out before, wherever it stood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process) and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    loud = _TRACEBACK in given
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        _run([word for word in given if word != _TRACEBACK])
        return 0
    except typer.Exit as done:
        return int(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", _INTERRUPTED, loud)
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except EffpError as error:
        return _failed(str(error), _FAILED, loud)
    except OSError as error:
        return _failed(str(error), _FAILED, loud)
    except Exception as error:
        return _unforeseen(error, loud)


def _run(arguments: list[str]) -> None:
    # Not app(): that would take Ctrl-C and every failure for itself.
    command: Any = typer.main.get_command(app)
    with command.make_context("effp-fx", arguments) as context:
        command.invoke(context)


def _unforeseen(error: Exception, loud: bool) -> int:
    if isinstance(error, _ClickError):
        said: Any = error
        context = getattr(said, "ctx", None)
        place = context.command_path if context is not None else "effp-fx"
        text = " ".join(said.format_message().split())
        usage = isinstance(error, _UsageError)
        return _failed(f"{text} ({place} --help)" if usage else text, _USAGE if usage else _FAILED, loud)
    text = " ".join(str(error).split())
    more = "" if loud else f" ({_TRACEBACK} shows where)"
    return _failed(f"unforeseen {type(error).__name__}: {text}{more}", _FAILED, loud)


def _failed(text: str, status: int, loud: bool) -> int:
    if loud:
        traceback.print_exc()
    print(f"effp-fx: {text}", file=sys.stderr)
    return status
