"""The group graph as a file: SVG, DOT, or one HTML page that needs nothing else, with a box to filter the groups."""

from __future__ import annotations

import html
import os
from pathlib import Path

from effp_fx import atomic_file
from effp_fx.errors import EffpError
from effp_fx.groups import Analysis
from effp_fx.report import group_picture
from effp_fx.report.subjects import Traced

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 14px sans-serif; margin: 0 }}
  header {{ position: sticky; top: 0; background: #fff; padding: 12px 24px; border-bottom: 1px solid #ccc }}
  input {{ font: inherit; width: 22em; padding: 4px 8px }}
  .group.off, path.off {{ opacity: .1 }}
  main {{ overflow: auto }}
</style>
<header>
  <strong>{title}</strong>
  <input id="filter" type="search" placeholder="filter groups and layers by name" autofocus>
  <span id="count"></span>
</header>
<main>
{picture}
</main>
<script>
  const box = document.getElementById("filter"), groups = [...document.querySelectorAll(".group")];
  const edges = [...document.querySelectorAll("main path")];
  function said(element) {{ return element.querySelector("title").textContent.toLowerCase(); }}
  function filter() {{
    const wanted = box.value.toLowerCase();
    let shown = 0;
    for (const group of groups) {{
      const on = said(group).includes(wanted);
      group.classList.toggle("off", !on);
      shown += on;
    }}
    for (const edge of edges) edge.classList.toggle("off", !said(edge).includes(wanted));
    document.getElementById("count").textContent = `${{shown}} of ${{groups.length}}`;
  }}
  box.addEventListener("input", filter);
  filter();
</script>
</html>
"""
SUFFIXES = (".svg", ".html", ".dot")


def write_graph(trace: Traced, path: str | os.PathLike[str]) -> Path:
    """Draw which channel group feeds which layer; the ending of the path says how. Raises EffpError for another one."""
    target = Path(path)
    return atomic_file.write(target, graph_text(trace, check_suffix(target)).encode())


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The ending of a picture's file, in small letters. Raises EffpError for one that is not known."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise EffpError("the group graph is drawn as " + ", ".join(SUFFIXES), where=os.fspath(path), seen=repr(suffix))
    return suffix


def graph_text(trace: Traced, suffix: str) -> str:
    """The picture as text: `.svg`, `.html` or `.dot`."""
    feeds = trace.analysis.group_graph
    if suffix == ".dot":
        return group_picture.dot(feeds)
    picture = group_picture.svg(feeds, _tips(trace.analysis))
    if suffix == ".svg":
        return picture
    return _PAGE.format(title=html.escape(f"channel groups of {trace.model_name}"), picture=picture)


def _tips(analysis: Analysis) -> dict[str, str]:
    read_by = group_picture.readers(analysis.group_graph)
    return {
        group.name: "".join(
            [f"\nmade by {', '.join(group.layers)}", f"\nread by {', '.join(read_by.get(group.name, ['nothing']))}"]
        )
        for group in analysis.groups
    }
