"""Reports: what a trace, a pruning and an export found, as tables for people and as JSON for programs."""

from effp_fx.report.bench_report import bench_json, bench_table, latency_json, latency_table
from effp_fx.report.compile_report import compile_json, compile_table
from effp_fx.report.data_report import data_json, data_table
from effp_fx.report.export_report import export_json, export_table
from effp_fx.report.grid_progress import grid_progress
from effp_fx.report.grid_report import grid_json, grid_table
from effp_fx.report.group_page import check_suffix, write_graph
from effp_fx.report.handoff_report import handoff_json, handoff_table
from effp_fx.report.int8_report import int8_json, int8_table
from effp_fx.report.prune_report import (
    file_list,
    plan_table,
    prune_json,
    prune_table,
    verification_json,
    verification_table,
)
from effp_fx.report.ratio_report import RatioReport, ratio_json, ratio_table
from effp_fx.report.run_page import run_page, run_pictures
from effp_fx.report.run_progress import run_progress
from effp_fx.report.run_report import run_json
from effp_fx.report.run_table import run_table, scores_table
from effp_fx.report.tensorrt_report import check_json, check_table
from effp_fx.report.terminal import progress, show, text
from effp_fx.report.trace_report import channel_table, trace_json, trace_table, trace_text

__all__ = [
    "RatioReport",
    "bench_json",
    "bench_table",
    "channel_table",
    "check_json",
    "check_suffix",
    "check_table",
    "compile_json",
    "compile_table",
    "data_json",
    "data_table",
    "export_json",
    "export_table",
    "file_list",
    "grid_json",
    "grid_progress",
    "grid_table",
    "handoff_json",
    "handoff_table",
    "int8_json",
    "int8_table",
    "latency_json",
    "latency_table",
    "plan_table",
    "progress",
    "prune_json",
    "prune_table",
    "ratio_json",
    "ratio_table",
    "run_json",
    "run_page",
    "run_pictures",
    "run_progress",
    "run_table",
    "scores_table",
    "show",
    "text",
    "trace_json",
    "trace_table",
    "trace_text",
    "verification_json",
    "verification_table",
    "write_graph",
]
