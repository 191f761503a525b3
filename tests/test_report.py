"""Reports on real traces and prunings: tables say what the analysis holds, rows add up, pictures are whole."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from effp_fx import api, models, report
from effp_fx.errors import EffpError
from effp_fx.evaluate.latency import Latency, interleaved, onnx_call, torch_call
from effp_fx.inputs import Example
from effp_fx.plan import plan_of
from effp_fx.report import group_picture, terminal
from effp_fx.report.layers import frozen_causes, layer_rows
from effp_fx.verify import Check, OutputError, Verification
from tests.hand_made import chain

SVG = "{http://www.w3.org/2000/svg}"


class Unused(nn.Module):
    """Its layers run in another order than they are registered in, and one does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 2, 1)
        self.first = nn.Conv2d(3, 4, 3)
        self.idle = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def traced(name: str) -> api.Trace:
    return api.trace(models.build(f"effp:{name}").model)


@pytest.fixture(scope="module")
def residual() -> api.Trace:
    return traced("residual")


@pytest.fixture(scope="module")
def pruned() -> api.PruneResult:
    return api.prune_reported(models.randomise(models.build("effp:residual").model))


# --- layers ---


@pytest.mark.parametrize(
    "name", ["residual", "gate", "tied", "auxiliary", "torch_attention", "fused_attention", "unet"]
)
def test_the_rows_of_a_model_add_up_to_its_totals(name: str) -> None:
    trace = traced(name)
    rows = layer_rows(trace.analysis)
    assert sum(row.flops for row in rows) == pytest.approx(trace.flops)
    assert sum(row.params for row in rows) == trace.params
    assert len({row.layer for row in rows}) == len(rows)


def test_a_row_says_what_the_layer_is_and_where_it_belongs(residual: api.Trace) -> None:
    rows = {row.layer: row for row in layer_rows(residual.analysis)}
    stem, head = rows["stem.0"], rows["head.2"]
    assert (stem.kind, stem.channels, stem.params) == ("Conv2d", 16, 3 * 16 * 9)
    assert (stem.groups, stem.frozen, stem.why) == (("stem.0",), 0, "")
    assert "stem.1.weight" in stem.gammas
    assert rows["stem.1"].kind == "BatchNorm2d" and rows["stem.1"].groups == ("stem.0",) and not rows["stem.1"].flops
    assert (head.channels, head.frozen, head.groups) == (5, 5, ())
    assert "reaches the model's output" in head.why


def test_layers_stand_in_the_order_in_which_they_run() -> None:
    trace = api.trace(Unused(), torch.rand(1, 3, 8, 8))
    assert [row.layer for row in layer_rows(trace.analysis)] == ["first", "second"]
    assert "56 parameters belong to layers that did not run" in report.text(report.trace_table(trace))


def test_what_runs_in_train_mode_only_comes_last_and_says_so() -> None:
    rows = layer_rows(traced("auxiliary").analysis)
    flags = [row.train_only for row in rows]
    assert any(flags) and flags == sorted(flags)
    assert all(not row.flops for row in rows if row.train_only)


def test_after_a_plan_each_row_has_the_sizes_of_the_compact_model(pruned: api.PruneResult) -> None:
    rows = layer_rows(pruned.trace.analysis, pruned.keep)
    assert sum(row.flops_after for row in rows) == pytest.approx(pruned.flops_after)
    assert sum(row.params_after for row in rows) == sum(tensor.numel() for tensor in pruned.model.parameters())
    for row in rows:
        layer = pruned.model.get_submodule(row.layer)
        assert row.channels_after == layer.weight.shape[0]
    assert any(row.channels_after < row.channels for row in rows)


def test_an_analysis_without_graphs_has_rows_too() -> None:
    rows = layer_rows(chain([8, 4]).analysis())
    assert [(row.layer, row.channels) for row in rows] == [("conv0", 8), ("conv1", 4), ("head", 10)]


def test_reasons_are_put_together_the_costliest_first() -> None:
    trace = traced("gate")
    causes = frozen_causes(trace.analysis)
    assert [cause.flops for cause in causes] == sorted((cause.flops for cause in causes), reverse=True)
    assert sum(cause.channels for cause in causes) == sum(item.channels for item in trace.frozen)
    assert all(cause.layers and cause.reason for cause in causes)


# --- the trace ---


def test_a_trace_prints_its_layers_totals_and_reasons(residual: api.Trace) -> None:
    text = str(residual)
    lines = text.splitlines()
    assert re.match(r"layer\s+type\s+channels\s+group\s+gamma\s+FLOPs\s+share\s+params\s+frozen and why$", lines[0])
    assert any(
        re.match(r"head\.2\s+Linear\s+5\s+-\s+-\s+640\s+0\.00 %\s+165\s+all: reaches the model's output", line)
        for line in lines
    )
    assert "13.55 M FLOPs (2 per multiply-accumulate), 17.52 k parameters" in text
    assert re.search(r"prunable: \d\d\.\d\d % of the FLOPs, by 96 channels in 4 groups", text)
    assert "frozen, the costliest first" in text


def test_plain_text_has_no_boxes_no_colours_and_no_trailing_blanks(
    residual: api.Trace, pruned: api.PruneResult
) -> None:
    for table in (report.trace_table(residual), report.channel_table(residual), report.prune_table(pruned)):
        text = report.text(table)
        assert text.isascii() and "\x1b" not in text
        assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_names(residual: api.Trace, width: int) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True, color_system=None).print(report.trace_table(residual))
    text = stream.getvalue()
    assert "shortcut.0" in text and "FLOPs" in text
    assert ("gamma" in text) == (width >= 120)


def test_the_channel_table_names_every_slice(residual: api.Trace) -> None:
    text = report.text(report.channel_table(residual))
    for group in residual.groups:
        assert group.name in text
        for part in group.slices:
            assert f"{part.role:<5} {part.tensor}[{part.dim}] x{part.per_channel}" in text


def test_the_trace_as_json_survives_json_and_holds_what_the_table_shows(residual: api.Trace) -> None:
    found = json.loads(json.dumps(report.trace_json(residual), allow_nan=False))
    assert found["flops"] == residual.flops and isinstance(found["flops"], int)
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert [group["name"] for group in found["groups"]] == [group.name for group in residual.groups]
    assert found["groups"][0]["slices"][0].keys() == {"tensor", "dim", "role", "per_channel"}
    assert found["frozen"][0]["reason"] == "reaches the model's output"


# --- the group graph ---


def test_the_picture_shows_every_group_and_every_edge(residual: api.Trace, tmp_path: Path) -> None:
    root = ElementTree.fromstring(report.write_graph(residual, tmp_path / "groups.svg").read_text())
    feeds = residual.group_graph
    assert {group.get("data-name") for group in root.findall(f"{SVG}g")} == set(feeds)
    assert len(root.findall(f"{SVG}path")) == feeds.number_of_edges()
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in group_picture.layout(feeds).values():
        assert box.x >= 0 and box.x + box.width <= width and 0 <= box.y < height


def test_the_boxes_of_a_row_do_not_overlap_and_edges_lead_down() -> None:
    feeds = traced("unet").group_graph
    boxes = group_picture.layout(feeds)
    for one in boxes.values():
        beside = [two for two in boxes.values() if two is not one and two.row == one.row]
        assert all(two.x >= one.x + one.width or one.x >= two.x + two.width for two in beside)
    back = group_picture.backward_edges(feeds)
    assert all(boxes[one].row < boxes[two].row for one, two in feeds.edges if (one, two) not in back)


def test_cycles_are_drawn_back_up() -> None:
    feeds = nx.DiGraph()
    for name in ("inner", "trunk", "stem"):
        feeds.add_node(name, channels=4, frozen=False)
    for one, two in (("stem", "trunk"), ("trunk", "inner"), ("inner", "trunk"), ("trunk", "trunk")):
        feeds.add_edge(one, two, layers=[two])
    assert group_picture.backward_edges(feeds) == {("inner", "trunk"), ("trunk", "trunk")}
    assert group_picture.svg(feeds).count("stroke-dasharray") == 2
    assert {name: box.row for name, box in group_picture.layout(feeds).items()} == {"stem": 0, "trunk": 1, "inner": 2}


def test_a_model_without_groups_gives_an_empty_picture() -> None:
    assert ElementTree.fromstring(group_picture.svg(nx.DiGraph())).tag == f"{SVG}svg"


def test_names_are_escaped_in_every_format() -> None:
    feeds = nx.DiGraph()
    feeds.add_node('a"<b>&\\', channels=4, frozen=True)
    ElementTree.fromstring(group_picture.svg(feeds))
    assert '"a\\"<b>&\\\\"' in group_picture.dot(feeds)


def test_the_page_needs_nothing_from_elsewhere(residual: api.Trace, tmp_path: Path) -> None:
    page = report.write_graph(residual, tmp_path / "groups.html").read_text()
    assert "<svg" in page and 'id="filter"' in page
    assert not re.search(r'(src|href)="', page)
    assert page.count("http") == 1  # the name of SVG itself


def test_dot_names_every_group(residual: api.Trace, tmp_path: Path) -> None:
    text = report.write_graph(residual, tmp_path / "groups.dot").read_text()
    assert text.startswith("digraph") and text.count("->") == residual.group_graph.number_of_edges()


def test_another_ending_is_refused(residual: api.Trace, tmp_path: Path) -> None:
    with pytest.raises(EffpError, match=r"\.svg, \.html, \.dot"):
        report.write_graph(residual, tmp_path / "groups.png")
    assert not list(tmp_path.iterdir())


# --- the pruning ---


def test_a_pruning_shows_before_and_after_and_the_proof(pruned: api.PruneResult) -> None:
    text = report.text(report.prune_table(pruned))
    assert re.search(r"stem\.0\s+Conv2d\s+16\s+-> \d+\s", text)
    assert re.search(r"^FLOPs\s+13\.55 M\s+\d\.\d{3} M\s+4\d\.\d\d %  #+\.+$", text, re.MULTILINE)
    for mode in ("eval", "train"):
        assert re.search(rf"^{mode}\s+float64\s+\S+\s+1e-09\s+equal", text, re.MULTILINE)
    assert "the compact model computes what the masked one does" in text
    assert "stem.1 " not in text, "norms follow their layer"


def test_notes_are_shown_with_trace_and_pruning() -> None:
    result = api.prune_reported(Unused(), torch.rand(1, 3, 8, 8))
    assert result.trace.notes
    for table in (report.trace_table(result.trace), report.prune_table(result)):
        assert f"note: {result.trace.notes[0]}" in report.text(table)
    assert report.prune_json(result)["notes"] == list(result.trace.notes)


def test_a_verification_that_failed_is_not_to_be_overlooked() -> None:
    bad = Check(
        "eval", "float64", 1e-9, (OutputError("boxes", (2, 4), 1.0, 0.1), OutputError("scores", (2,), 0.0, 0.0))
    )
    text = report.text(report.verification_table(Verification((bad,))))
    assert "DIFFERS" in text and "NOT verified" in text and "boxes 2x4" in text


def test_the_pruning_as_json_holds_layers_checks_and_files(pruned: api.PruneResult) -> None:
    found = json.loads(json.dumps(report.prune_json(pruned, {"plan": Path("out/plan.json")}), allow_nan=False))
    assert found["flops_after"] <= found["flops_before"] / 2 < found["flops_after"] + found["one_channel_flops"]
    assert sum(layer["flops_after"] for layer in found["layers"]) == found["flops_after"]
    assert found["verification"]["equal"] and len(found["verification"]["checks"]) == 4
    assert found["files"] == {"plan": "out/plan.json"} and "onnx" not in found


def test_a_plan_alone_shows_what_is_left_of_each_group(pruned: api.PruneResult) -> None:
    text = report.text(report.plan_table(plan_of(pruned.model)))
    assert re.search(r"FLOPs: 13\.55 M -> \d\.\d+ M", text)
    assert all(group.name in text for group in pruned.trace.groups)


# --- how it is shown ---


def test_numbers_and_parts() -> None:
    numbers = (0, 512, 9408, 36_864, 236_027_904, 69_720_000_000, 1.5e12)
    assert [terminal.amount(number) for number in numbers] == [
        "0",
        "512",
        "9.408 k",
        "36.86 k",
        "236.0 M",
        "69.72 G",
        "1.500 T",
    ]
    assert terminal.percent(0.49996) == "50.00 %" and terminal.percent(0.4999) == "49.99 %"
    assert isinstance(terminal.whole(3.0), int) and terminal.whole(3.5) == 3.5


@pytest.mark.parametrize(
    "before,after,plain", [(1.0, 0.5, "####...."), (0.5, 0.5, "####"), (1.0, 0.0, "#......."), (1, 1, "#" * 8)]
)
def test_a_bar_in_plain_text(before: float, after: float, plain: str) -> None:
    assert report.text(terminal.Bar(before, after, 8)).strip() == plain


def test_a_bar_on_a_terminal_is_made_of_blocks() -> None:
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system=None, width=40).print(terminal.Bar(1.0, 0.55, 8))
    assert stream.getvalue().strip() == "████▍░░░"


def test_progress_is_one_line_a_step_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with report.progress(stream) as step:
        step("capture in eval mode")
        step("interpret")
    assert re.fullmatch(r"\[ +\d+\.\d s\] capture in eval mode\n\[ +\d+\.\d s\] interpret\n", stream.getvalue())


def test_progress_is_a_spinner_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with report.progress(stream) as step:
        step("[not a style] interpret")
    assert "\n[" not in stream.getvalue()


# --- latency ---


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ds"}
    dense, small = interleaved(calls, rounds=3, warmup=1)
    assert order == [*"ds", *"ds", *"sd", *"ds"]
    assert len(dense.seconds) == len(small.seconds) == 3


def test_rounds_end_when_the_time_is_up_but_not_before_five() -> None:
    (only,) = interleaved({"one": lambda: None}, rounds=50, most_seconds=0.0)
    assert len(only.seconds) == 5


def test_a_bench_compares_with_the_first() -> None:
    found = (Latency("dense", (0.2, 0.1, 0.3)), Latency("small", (0.1, 0.1, 0.1)))
    assert found[0].median == 0.2 and found[0].quartiles == pytest.approx((0.15, 0.25))
    text = report.text(report.bench_table("PyTorch", found))
    assert re.search(r"small\s+100\.00 ms\s+100\.00 to 100\.00 ms\s+50\.00 %", text)
    assert report.bench_json("PyTorch", found)["networks"][1]["ratio"] == pytest.approx(0.5)


def test_a_torch_call_runs_in_eval_mode_and_without_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())
    output = torch_call(model.train(), Example((torch.rand(1, 3, 4, 4),)))()
    assert isinstance(output, Tensor) and not output.requires_grad and not model.training


def test_what_is_no_onnx_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(EffpError, match="ONNX Runtime cannot read the file") as caught:
        onnx_call(tmp_path / "x.onnx")
    assert caught.value.seen and "\n" not in caught.value.seen


def test_keep_all_changes_nothing(residual: api.Trace) -> None:
    rows = layer_rows(residual.analysis, np.ones(residual.analysis.channels, dtype=np.bool_))
    assert rows == layer_rows(residual.analysis)
