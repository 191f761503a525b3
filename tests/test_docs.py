"""README and docs/ tell the truth: every snippet runs, every link leads somewhere, generated pages are fresh.

A fenced block is taken by its language:
- ```python  runs; the blocks of one page are one program, in one empty folder;
- ```bash    needs a mark on the line above: `<!-- test: run -->`, `<!-- test: dry-run -->` (each line must be a `make`
             command whose target exists), or `<!-- test: skip, because ... -->`. Python blocks may carry them too;
- any other language is text.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from effp_fx import ops

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- test: (run|dry-run|skip, because \S.+) -->")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
SECONDS_FOR_A_BASH_BLOCK = 300


@dataclass(frozen=True)
class Snippet:
    """One fenced block: where it begins (line of its fence), what it is written in, and what its mark says."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        return f"{relative(self.page)}:{self.line}"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def snippets(page: Path) -> Iterator[Snippet]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    fence = ""
    for number, line in enumerate(lines):
        found = re.match(r"\s*(```+|~~~+)\s*(\w*)", line)
        if not found:
            continue
        if start is None:
            start, fence = number, found[1]
        elif found[1].startswith(fence) and not found[2]:
            opening = re.match(r"(\s*)[`~]+\s*(\w*)", lines[start])
            assert opening
            mark = MARK.search(lines[start - 1]) if start else None
            body = [text.removeprefix(opening[1]) for text in lines[start + 1 : number]]
            yield Snippet(page, start + 1, opening[2], mark[1] if mark else "", "\n".join(body) + "\n")
            start = None
    assert start is None, f"{relative(page)}:{(start or 0) + 1}: a block that is never closed"


def run_python(snippet: Snippet, namespace: dict[str, Any]) -> None:
    # Empty lines in front, so that a traceback shows the page's own line.
    code = compile("\n" * snippet.line + snippet.text, str(snippet.page), "exec")
    exec(code, namespace)


def run_bash(snippet: Snippet) -> None:
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet.text],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_FOR_A_BASH_BLOCK,
    )
    assert done.returncode == 0, f"{snippet.place}\n{snippet.text}\n{done.stdout}\n{done.stderr}"


def dry_run(snippet: Snippet) -> None:
    for line in snippet.text.splitlines():
        command = shlex.split(line, comments=True)
        if not command:
            continue
        assert command[0] == "make", f"{snippet.place}: only make can be tried without running it: {line}"
        done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{snippet.place}: {line}\n{done.stderr}"


def pages_with_snippets() -> list[Path]:
    return [page for page in PAGES if any(s.language in {"python", "bash"} for s in snippets(page))]


def run_page(page: Path) -> None:
    """Run the snippets of a page in the folder we are in; what a block defines, the next ones have."""
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for snippet in snippets(page):
        if snippet.mark.startswith("skip"):
            continue
        if snippet.mark == "dry-run":
            dry_run(snippet)
        elif snippet.language == "python":
            run_python(snippet, namespace)
        elif snippet.language == "bash":
            run_bash(snippet)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_snippets(), ids=relative)
def test_the_snippets_of_a_page_run(page: Path, tmp_path: Path) -> None:
    # In a process of its own, as its reader has it: what a page registers must not reach the next test.
    done = subprocess.run([sys.executable, __file__, str(page)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_bash_block_says_whether_it_is_run(page: Path) -> None:
    unmarked = [snippet.place for snippet in snippets(page) if snippet.language == "bash" and not snippet.mark]
    assert not unmarked, f"put <!-- test: run --> (or dry-run, or skip, because ...) on the line above: {unmarked}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [target for target in LINK.findall(prose) if "://" not in target and not target.startswith("mailto:")]
    broken = [target for target in targets if not (page.parent / target).exists()]
    assert not broken, f"{relative(page)} links to {broken}"


def generator() -> ModuleType:
    """docs/generate.py, which is a script of the repository and no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_code_gives_now() -> None:
    # In a process of its own: a test may have registered an op in this one.
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_that_was_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    generate = generator()
    for name, page in generate.PAGES.items():
        (tmp_path / name).write_text(page(), encoding="utf-8")
    assert generate.stale(tmp_path) == []
    (tmp_path / "ops.md").write_text("# Ops\n", encoding="utf-8")
    assert generate.stale(tmp_path) == ["ops.md"]


def test_every_error_has_its_section() -> None:
    generate = generator()
    page = generate.errors_page()
    names = [error.__name__ for error in generate.exceptions()]
    assert names[0] == "EffpError"
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == names


def test_ops_in_the_same_words_share_a_row_and_a_bar_stays_in_its_cell() -> None:
    row = replace(ops.rows()[0], name="aten.abs", kind="pass", doc="|x|, zero where x is.\n\nMore.")
    twin = replace(row, name="aten.absolute")
    assert r"| `aten.abs` `aten.absolute` | \|x\|, zero where x is. |" in generator().ops_page([twin, row])


def test_a_page_is_read_as_its_reader_sees_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    bash = "<!-- test: skip, because it needs a board -->\n```bash\nls\n```\n"
    page.write_text(f"text\n{bash}  ```python\n  x = 1\n  ```\n")
    first, second = snippets(page)
    assert (first.language, first.line, first.text) == ("bash", 3, "ls\n")
    assert first.mark == "skip, because it needs a board"
    assert (second.language, second.line, second.text, second.mark) == ("python", 6, "x = 1\n", "")


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
