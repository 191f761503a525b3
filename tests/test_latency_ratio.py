"""The bench of latency: what was made or timed once is not made or timed again, and the page says what was found."""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency_ratio

FLOPS = {"dense": 8e9, "round_to=8": 4e9}


def test_runs_are_kept_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "files" / "effp-net"
    folder.mkdir(parents=True)
    (folder / "flops.json").write_text(json.dumps(FLOPS), encoding="utf-8")
    asked: list[int] = []

    def timed(_: Path, names: list[str], threads: int, *__: float) -> dict[str, Any]:
        if asked == [1] and threads == 2 and not (tmp_path / "calm").exists():
            raise KeyboardInterrupt
        asked.append(threads)
        seconds = {"dense": 0.08, "round_to=8": 0.044}
        return {name: {"median": seconds[name], "quartiles": [0.04, 0.09], "rounds": 5} for name in names}

    def by_layer(file: Path, _: Path) -> dict[str, float]:
        return {"stem": 0.03, "body": 0.05} if file.stem == "dense" else {"stem": 0.03, "body": 0.014}

    monkeypatch.setattr(latency_ratio, "timed", timed)
    monkeypatch.setattr(latency_ratio, "_by_layer", by_layer)
    options = ["--models", "effp:net", "--networks", "round_to=8"]
    options += ["--files", str(tmp_path / "files"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["latency_ratio", *options])
    with pytest.raises(KeyboardInterrupt):
        latency_ratio.main()
    day = datetime.date.today().isoformat()
    page = (tmp_path / "latency.md").read_text(encoding="utf-8")
    assert f"- effp:net, 1 thread, {day}: best 1.10 with round_to=8; met." in page
    (tmp_path / "calm").touch()
    latency_ratio.main()
    latency_ratio.main()
    assert asked == [1, 2]
    page = (tmp_path / "latency.md").read_text(encoding="utf-8")
    assert "| effp:net | 2 | round_to=8 | 4.00 | 0.500 | 44.0 ms (40.0 to 90.0) | 0.550 | 1.10 |" in page
    assert "| stem | 30.00 | 30.00 | +0.375 |" in page and "| body | 50.00 | 14.00 | -0.275 |" in page
    assert str(tmp_path) not in page
