"""The contracts of the repository itself: layers, public names, the size of a file, its first line, the two links."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import effp_fx

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "effp_fx").rglob("*.py"))
FOLDERS = ("effp_fx", "tests", "docs", "examples", "benchmarks")
PYTHON_FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# A name more is a promise more: it is added here in the same commit, with its line in the changelog.
PUBLIC_NAMES = {
    "Session",
    "Preprocess",
    "check_tensorrt",
    "export_onnx",
    "handoff",
    "load",
    "plan_of",
    "prune",
    "register_model",
    "register_op",
    "save",
    "trace",
    "verify",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_layers_and_the_other_import_contracts_hold() -> None:
    # By our own interpreter: on PATH there may be another import-linter, or none.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run([sys.executable, "-c", code, "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_the_public_names_are_these_and_no_others() -> None:
    assert set(effp_fx.__all__) == PUBLIC_NAMES
    assert len(effp_fx.__all__) == len(set(effp_fx.__all__))
    for name in effp_fx.__all__:
        assert getattr(effp_fx, name).__doc__, f"effp_fx.{name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_is_one_idea_of_at_most_350_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_the_first_line_says_what_the_file_does(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert re.match(r'r?"""\S.{15,}', first), f"{relative(path)}:1 is no docstring: {first!r}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_public_function_or_class_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    bare = [f"{relative(path)}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    assert not bare, bare


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_is_a_drawer_for_everything(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("name", ["passes", "models"])
def test_the_two_wings_are_links_into_the_package(name: str) -> None:
    link = ROOT / name
    if not link.is_symlink():
        # A checkout without symbolic links holds the target's name as the file's text.
        assert link.read_text(encoding="utf-8").strip() == f"effp_fx/{name}"
        return
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / "effp_fx" / name
    assert (link / "__init__.py").is_file()


def test_package_pyproject_and_changelog_agree_on_the_version() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert effp_fx.__version__ == declared
    assert f"## {declared}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
