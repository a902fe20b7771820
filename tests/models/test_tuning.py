"""What a provider may ask for customers' jobs: bounds, defaults that ask for nothing, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.methods import LisaConfig, SafeGradConfig
from models.tuning import (
    AppliedProtection,
    LoxConfig,
    ReshapedAdapter,
    SafeLoraConfig,
    TuningProtection,
)


class TestTuningProtection:
    def test_asks_for_nothing_by_default(self) -> None:
        tuning = TuningProtection.model_validate({})
        assert tuning.is_off
        assert not tuning.reshapes
        assert tuning.safety_rows(1_000_000) == 0

    @pytest.mark.parametrize(
        ("asked", "field"),
        [
            ({"method": {"name": "booster"}}, "method"),
            ({"method": {"name": "lisa", "rho": -1}}, "method.lisa.rho"),
            ({"safety_share": -0.1}, "safety_share"),
            ({"safety_share": 1.1}, "safety_share"),
            ({"max_learning_rate_multiplier": 0}, "max_learning_rate_multiplier"),
            ({"max_learning_rate_multiplier": 10.1}, "max_learning_rate_multiplier"),
            ({"canary_stop": 0}, "canary_stop"),
            ({"canary_stop": 1}, "canary_stop"),
            ({"repair": {"name": "prayer"}}, "repair"),
            ({"repair": {"name": "lox", "rank": 0}}, "repair.lox.rank"),
            ({"repair": {"name": "lox", "c": -1}}, "repair.lox.c"),
            ({"repair": {"name": "lox", "tau": 1}}, "repair.lox.tau"),
            ({"repair": {"name": "safe-lora", "tau": 1.1}}, "repair.safe-lora.tau"),
            ({"repair": {"name": "safe-lora", "rank": 257}}, "repair.safe-lora.rank"),
            ({"scales": []}, "scales"),
            ({"scales": [0.8]}, "scales"),
            ({"scales": [1, 0.4, 0.6]}, "scales"),
            ({"scales": [1, 0.5, 0.5]}, "scales"),
            ({"scales": [1, 0]}, "scales.1"),
            ({"scales": [1.5, 1]}, "scales.0"),
            ({"scales": [1 - i / 20 for i in range(11)]}, "scales"),
            ({"max_rank": 0}, "max_rank"),
            ({"max_rank": 257}, "max_rank"),
            ({"dropout": 0.1}, "dropout"),
        ],
    )
    def test_what_is_out_of_bounds_is_refused_by_its_name(
        self, asked: dict[str, object], field: str
    ) -> None:
        with pytest.raises(ValidationError) as caught:
            TuningProtection.model_validate(asked)
        assert ".".join(map(str, caught.value.errors()[0]["loc"])) == field

    @pytest.mark.parametrize(
        ("asked", "reshapes"),
        [
            ({"repair": {"name": "lox"}}, True),
            ({"repair": {"name": "safe-lora"}}, True),
            ({"scales": [1, 0.5]}, True),
            ({"scales": [1]}, False),
            ({"safety_share": 0.1, "canary_stop": 0.5, "method": {"name": "safegrad"}}, False),
        ],
    )
    def test_knows_whether_the_adapter_changes_after_training(
        self, asked: dict[str, object], reshapes: bool
    ) -> None:
        assert TuningProtection.model_validate(asked).reshapes == reshapes

    @pytest.mark.parametrize(
        ("share", "rows", "expected"),
        [(0.05, 800, 40), (0.03, 100, 3), (0.07, 100, 7), (1, 12, 12), (0.001, 20, 1)],
    )
    def test_counts_the_safety_rows(self, share: float, rows: int, expected: int) -> None:
        assert TuningProtection(safety_share=share).safety_rows(rows) == expected


def test_the_documentation_has_a_row_for_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "safety-set.md").read_text()
    for field in TuningProtection.model_fields:
        assert f"\n| `{field}` |" in page


class TestLisaSteps:
    @pytest.mark.parametrize(
        ("turns", "user_steps", "expected"),
        [((2, 8), 16, 20), ((2, 8), 17, 23), ((100, 900), 80, 180), ((0, 900), 80, 80)],
    )
    def test_the_customer_s_steps_are_all_there(
        self, turns: tuple[int, int], user_steps: int, expected: int
    ) -> None:
        lisa = LisaConfig(alignment_steps=turns[0], user_steps=turns[1])
        assert lisa.total_steps(user_steps) == expected

    @given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 500))
    def test_none_too_few_and_none_too_many(self, k1: int, k2: int, user_steps: int) -> None:
        lisa = LisaConfig(alignment_steps=k1, user_steps=k2)
        total = lisa.total_steps(user_steps)
        assert sum(step % (k1 + k2) >= k1 for step in range(total)) == user_steps


class TestSummary:
    EVERYTHING = TuningProtection(
        method=SafeGradConfig(),
        safety_share=0.05,
        max_learning_rate_multiplier=2,
        canary_stop=0.6,
        repair=LoxConfig(),
        scales=(1, 0.8, 0.6),
    )

    def test_of_nothing_is_empty(self) -> None:
        assert AppliedProtection(tuning=TuningProtection()).summary() == ""

    def test_before_the_job_says_what_is_asked(self) -> None:
        assert AppliedProtection(tuning=self.EVERYTHING).summary() == (
            "trained by safegrad; 5% safety rows; rate at most 2 times the usual; stop below 60% of the canary's "
            "loss; repair by lox; scales 1, 0.8, 0.6"
        )

    def test_afterwards_says_what_it_did(self) -> None:
        applied = AppliedProtection(
            tuning=self.EVERYTHING,
            safety_rows=1_040,
            stopped_at_step=15,
            adapter=ReshapedAdapter(layers=14, repaired_layers=12, rank=16, truncation=0.0),
            scale=0.6,
        )
        for fact in ("(1,040)", "(at step 15)", "(12 of 14 layers)", "(0.6 kept)"):
            assert fact in applied.summary()
        assert AppliedProtection.model_validate(applied.model_dump(mode="json")) == applied

    def test_names_every_repair(self) -> None:
        tuning = TuningProtection(repair=SafeLoraConfig())
        assert AppliedProtection(tuning=tuning).summary() == "repair by safe-lora"
