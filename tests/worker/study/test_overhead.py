"""What a method costs: measured on the toy base, and compared with SFT in its own space."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.study import overhead
from worker.study.overhead import ARMS, Cost
from worker.study.place import Folders


def test_each_arm_is_compared_with_sft_of_its_round_and_space() -> None:
    costs = {arm.name: [Cost(10.0, 500, 1.0)] for arm in ARMS}
    costs["SFT"] = [Cost(2.0, 500, 1.0), Cost(4.0, 500, 3.0)]
    costs["Vaccine"] = [Cost(4.0, 500, 2.0), Cost(12.0, 500, 2.0)]
    costs["SFT (full)"] = [Cost(5.0, 700, 1.0)]
    lines = overhead.table({name: own * (3 - len(own)) for name, own in costs.items()}).splitlines()
    assert "| SFT | 1 | 1.00 (1.00 to 1.00) | 5 | 2 |" in lines
    assert "| Vaccine | 2 | 2.50 (2.00 to 3.00) | 5 | 2 |" in lines
    assert "| Titer | 1.6 | 2.00 (2.00 to 2.00) | 5 | 1 |" in lines


@pytest.mark.long
def test_a_run_counts_what_training_took(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "sandbox", lambda *_: folders.open())
    cost = overhead._run(ARMS[0], tmp_path)
    assert cost.seconds > 0
    assert cost.tokens > 0
    facts = overhead.rows(["SFT"], {"SFT": [cost]})
    assert facts == [
        {"arm": "SFT", "seconds": cost.seconds, "tokens": cost.tokens, "peak_mib": cost.peak_mib}
    ]
