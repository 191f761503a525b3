"""The zoo's driver and page: it goes on where it stopped, and shows what it was given, nothing else."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import compile_time, zoo, zoo_ours, zoo_table
from benchmarks.zoo_models import ZooModel
from effp_fx.bench import residual_chain

OURS: dict[str, Any] = {
    "status": "ok",
    "nodes": 90,
    "groups": 12,
    "prunable": 0.98,
    "target": 0.5,
    "flops_kept": 0.49991,
    "params_kept": 0.41,
    "within_one_channel": True,
    "error": 3e-16,
    "train_step": "yes",
    "peak_mib": 812.0,
    "seconds": {"capture": 0.5, "analysis": 0.2, "trial": 0.1, "plan": 0.1, "lowering": 0.1, "verify": 0.4},
}
THEIRS: dict[str, Any] = {"status": "ok", "flops_kept": 0.47, "error": 1e-15, "graph_s": 1.5, "prune_s": 0.5}
LOST: dict[str, Any] = {"status": "wrong", "message": "output (1, 10) became (1, 7)", "flops_kept": 0.48, "error": None}


def _row(**parts: Any) -> dict[str, Any]:
    return {"spec": "torchvision:net18?size=3", "group": "nets", "ours": None, "nothing": None, "recipe": None, **parts}


def test_a_row_shows_both_tools_and_the_ratio_of_their_times() -> None:
    page = zoo_table.page({"cores": "2"}, [_row(ours=OURS, nothing=LOST, recipe=THEIRS)])
    row = "| net18 | 90 | 12 | 0.980 | 0.4999 | 0.410 | yes | 3e-16 | yes | 0.50 | 0.20 | 0.10 | 0.10 | 0.10 | 812 |"
    assert row in page
    assert (
        "| net18 | ok | 0.4999 | 3e-16 | 1.00 | wrong | 0.4800 | shape | - | ok | 0.4700 | 1e-15 | 2.00 | 0.50 |"
        in page
    )
    assert "- net18, TP, nothing told: wrong. `output (1, 10) became (1, 7)`" in page
    assert "| **all** | 1 | 1 | 1 | 0 ok, 1 wrong | 1 ok | 0.50 (median of 1) |" in page


def test_times_that_lie_more_than_a_day_apart_are_not_compared() -> None:
    ours, theirs = ({**part, "date": day} for part, day in ((OURS, "2026-11-27"), (THEIRS, "2026-11-25")))
    assert "| **all** | 1 | 1 | 1 | 0 ok | 1 ok | - |" in zoo_table.page({}, [_row(ours=ours, recipe=theirs)])


def test_what_was_not_measured_is_counted_and_not_shown() -> None:
    page = zoo_table.page({}, [_row(ours=OURS), _row(spec="torchvision:other")])
    assert "Not measured yet: 1 of 2 models." in page
    assert "other |" not in page


def test_a_crash_keeps_its_row_and_its_reason() -> None:
    page = zoo_table.page({}, [_row(ours={"status": "crash", "message": "KeyError: 'x'"})])
    assert "| net18 | - | - | - | crash |" in page
    assert "effp_fx: crash. `KeyError: 'x'`" in page


def test_a_model_whose_channels_all_hang_together_says_what_was_found_and_why() -> None:
    row = zoo_ours.row("timm:convnextv2_atto")
    assert row.status == "unreachable" and row.nodes and row.flops_kept is None
    assert "(50 % of the dense" in row.message and "shares its statistics with every other channel" in row.message
    page = zoo_table.page({}, [_row(ours=asdict(row))])
    assert f"| net18 | {row.nodes} | 0 | 0.000 | unreachable |" in page
    assert "effp_fx: unreachable. `UnreachableTargetError: flops cannot be brought down" in page


def test_what_the_page_has_is_not_measured_again(tmp_path: Path) -> None:
    journal, results = tmp_path / "parts.jsonl", tmp_path / "zoo.json"
    zoo.adopt(journal, results)
    assert not journal.exists()
    results.write_text(json.dumps({"rows": [_row(ours=OURS, recipe=THEIRS)]}), encoding="utf-8")
    journal.write_text(json.dumps({"spec": _row()["spec"], "part": "recipe", "status": "mine"}) + "\n")
    zoo.adopt(journal, results)
    done = zoo.finished(journal)
    assert {part: entry["status"] for (_, part), entry in done.items()} == {"recipe": "mine", "ours": "ok"}


def test_the_last_line_counts_and_one_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    journal = tmp_path / "parts.jsonl"
    lines = [{"spec": "a", "part": "ours", "status": status} for status in ("crash", "ok")]
    journal.write_text("\n".join(map(json.dumps, lines)) + '\n{"spec": "a", "pa', encoding="utf-8")
    done = zoo.finished(journal)
    assert list(done) == [("a", "ours")]
    assert done["a", "ours"]["status"] == "ok"


def test_only_what_is_missing_is_measured(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[str, str]] = []

    def fake(spec: str, part: str, limits_s: dict[str, float]) -> dict[str, Any]:
        asked.append((spec, part))
        return {"status": "ok", "wall_s": 0.0}

    monkeypatch.setattr(zoo, "measure", fake)
    journal = tmp_path / "parts.jsonl"
    limits = dict.fromkeys(zoo.PARTS, 1.0)
    zoo.run([ZooModel("a", "g")], {("a", "nothing"): {}}, journal, jobs=1, limits_s=limits)
    assert asked == [("a", "ours"), ("a", "recipe")]
    zoo.run([ZooModel("a", "g")], {**zoo.finished(journal), ("a", "nothing"): {}}, journal, jobs=1, limits_s=limits)
    assert len(asked) == 2


def test_the_residual_chain_has_the_convolutions_asked_for() -> None:
    for convolutions in (12, 50, 500):
        model, image = residual_chain.residual_chain(convolutions)
        found = sum(type(module).__name__ == "Conv2d" for module in model.modules())
        assert found == convolutions
    assert tuple(model(image).shape) == (1, 10)


def test_the_page_of_times_divides_medians_and_names_what_did_not_finish() -> None:
    steps = {"capture": 1.0, "analysis": 0.5, "trial": 0.5, "plan": 0.5, "lowering": 0.5}
    ours = [{**steps, "verify": 2.0} for _ in range(3)]
    theirs = [{"graph": 2.0, "prune": 4.0}]
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {
        "residual:50": {"effp_fx": ours, "torch_pruning": theirs},
        "residual:500": {"effp_fx": ours, "torch_pruning": [{"status": "timeout", "message": "no answer after 9 s"}]},
    }
    page = compile_time.page({"cores": "2"}, answers, 3)
    assert "**3.00** (3.00 to 3.00) | 2.00 | 2.00 | 4.00 | **6.00** (6.00 to 6.00) | 0.50 |" in page
    assert "- `residual:500`, torch_pruning: timeout, no answer after 9 s" in page
    assert "| effp_fx | 60.00 | 6.00 |" in page
