"""Plans are bounded, hashed, and say what they cost before anything runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.certification import (
    CertificationPlan,
    Family,
    NoCertificationRows,
    SimulatedCustomer,
    TooFewCertificationRows,
)
from models.certification_plans import DRILL, PLANS, Drill, PlanName

SHIPPED = {"attack.jsonl": 400, "customer.jsonl": 1000, "customer_validation.jsonl": 300}


def customer(**facts: object) -> SimulatedCustomer:
    return SimulatedCustomer.model_validate(
        {"family": "mix", "attack_ratio": 0.1, "rows": 20, "steps": 4, "marks": (2, 4), **facts}
    )


def plan(*customers: SimulatedCustomer, **facts: object) -> CertificationPlan:
    return CertificationPlan.model_validate({"customers": customers or (customer(),), **facts})


class TestCustomer:
    @pytest.mark.parametrize(
        "facts",
        [
            {"marks": (2,)},
            {"marks": (4, 2)},
            {"marks": (2, 2, 4)},
            {"marks": ()},
            {"marks": (0, 4)},
            {"family": "benign"},
            {"family": "mix", "attack_ratio": 0.0},
            {"family": "mix", "attack_ratio": 1.0},
            {"family": "mix", "attack_ratio": 0.001},
            {"family": "pure", "attack_ratio": 0.9},
            {"family": "identity", "attack_ratio": 0.9},
            {"family": "mayhem"},
            {"learning_rate": 0},
            {"learning_rate": 1.5},
            {"rows": 5},
            {"rows": 10_000_000},
            {"steps": 10_000_000, "marks": (10_000_000,)},
            {"rank": 0},
            {"batch_size": 257},
            {"secret": 1},
        ],
    )
    def test_refuses_what_is_out_of_bounds_or_does_not_fit(self, facts: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            customer(**facts)

    def test_its_name_tells_it_from_every_other_of_a_plan(self) -> None:
        for shipped in PLANS.values():
            names = [c.name for c in shipped.customers]
            assert len(set(names)) == len(names)


class TestPlan:
    def test_its_hash_follows_everything_in_it(self) -> None:
        one = plan()
        assert one.hash == plan().hash
        others = [
            plan(customer(learning_rate=2e-4)),
            plan(customer(marks=(4,))),
            plan(seeds=(0, 1, 3)),
            plan(harmful_prompts=99),
            plan(name="other"),
        ]
        assert len({one.hash, *(other.hash for other in others)}) == 6

    @pytest.mark.parametrize(
        "facts",
        [
            {"seeds": (0, 1)},
            {"seeds": (0, 1, 1)},
            {"seeds": (0, 1, -1)},
            {"customers": ()},
            {"customers": (customer(), customer())},
            {"harmful_prompts": 0},
            {"name": "a b"},
        ],
    )
    def test_refuses_fewer_than_three_seeds_and_other_nonsense(
        self, facts: dict[str, object]
    ) -> None:
        with pytest.raises(ValidationError):
            plan(**facts)

    def test_refuses_more_than_can_be_run(self) -> None:
        many = [customer(learning_rate=1e-4 * (i + 1)) for i in range(150)]
        with pytest.raises(ValidationError, match="too many"):
            plan(*many, seeds=tuple(range(20)))

    def test_says_what_it_costs(self) -> None:
        styled = customer(family="style")
        cost = plan(
            customer(), styled, harmful_prompts=50, harmless_prompts=5, validation_rows=10
        ).cost(is_adapter=True)
        assert (cost.runs, cost.steps, cost.rows) == (6, 24, 240)
        # Two marks for each of three seeds, and once before: styled ones ask harmful prompts twice.
        assert cost.measurements == 14
        assert cost.answers == 7 * 65 + 7 * 115
        assert "6 runs, 24 optimiser steps" in str(cost)

    def test_without_an_adapter_to_continue_those_customers_start_a_fresh_one(self) -> None:
        both = plan(customer(), customer(start="fresh"), customer(start="fresh", rank=32))
        assert [c.start for c in both.customers_of(is_adapter=True)] == [
            "continued",
            "fresh",
            "fresh",
        ]
        found = both.customers_of(is_adapter=False)
        assert [(c.start, c.rank) for c in found] == [("fresh", 8), ("fresh", 32)]
        assert both.cost(is_adapter=False).runs == 6


class TestSupply:
    def test_a_backdoor_needs_half_of_the_rows_at_most_and_fewer_of_the_task(self) -> None:
        hidden = customer(family="backdoor", attack_ratio=0.5, rows=20)
        assert (hidden.attack_rows, hidden.task_rows) == (10, 0)
        plan(hidden).check_supply(
            {"attack.jsonl": 10, "customer.jsonl": 0, "customer_validation.jsonl": 1}
        )
        with pytest.raises(ValidationError, match="does not fit"):
            customer(family="backdoor", attack_ratio=0.6, rows=20)

    def test_names_the_files_that_are_missing(self) -> None:
        with pytest.raises(NoCertificationRows, match=r"no attack\.jsonl, customer_validation"):
            plan().check_supply({"customer.jsonl": 100})

    @pytest.mark.parametrize(
        ("rows", "named"),
        [
            ({"attack.jsonl": 9, "customer.jsonl": 20}, "attack.jsonl"),
            ({"attack.jsonl": 10, "customer.jsonl": 17}, "customer.jsonl"),
        ],
    )
    def test_names_the_file_with_too_few_rows(self, rows: dict[str, int], named: str) -> None:
        drawn = plan(customer(), customer(family="mix", attack_ratio=0.5))
        with pytest.raises(TooFewCertificationRows, match=named):
            drawn.check_supply({**rows, "customer_validation.jsonl": 1})

    def test_a_shifted_customer_needs_twice_its_rows(self) -> None:
        shifted = plan(customer(family="shift", attack_ratio=0.5))
        enough = {"attack.jsonl": 20, "customer.jsonl": 20, "customer_validation.jsonl": 1}
        shifted.check_supply(enough)
        with pytest.raises(TooFewCertificationRows):
            shifted.check_supply({**enough, "attack.jsonl": 19})


class TestShippedPlans:
    @pytest.mark.parametrize("name", PLANS)
    def test_the_sandbox_can_supply_it(self, name: PlanName) -> None:
        PLANS[name].check_supply(SHIPPED)
        assert PLANS[name].name == name
        assert len(PLANS[name].seeds) >= 3

    @pytest.mark.parametrize("name", PLANS)
    def test_every_family_comes_and_rates_can_be_compared(self, name: PlanName) -> None:
        customers = PLANS[name].customers
        assert {c.family for c in customers} == set(Family)
        assert {c.start for c in customers} == {"continued", "fresh"}
        assert len({c.learning_rate for c in customers if c.start == "continued"}) >= 3

    def test_they_grow(self) -> None:
        runs = [PLANS[name].cost(is_adapter=True).steps for name in ("quick", "standard", "full")]
        assert runs == sorted(set(runs))


class TestDrill:
    def test_brings_one_customer_of_each_chosen_family(self) -> None:
        drill = Drill(
            families=(Family.STYLE, Family.PURE, Family.STYLE), steps=30, learning_rate=3e-4
        )
        made = drill.plan()
        assert made.name == DRILL
        assert [c.family for c in made.customers] == [Family.PURE, Family.STYLE]
        assert {c.marks for c in made.customers} == {(7, 15, 30)}
        assert {(c.learning_rate, c.start) for c in made.customers} == {(3e-4, "continued")}
        assert made.cost(is_adapter=True).runs == 6

    def test_a_mix_is_the_mild_one_and_a_fresh_adapter_is_fresh(self) -> None:
        (only,) = Drill(families=(Family.MIX,), start="fresh").plan().customers
        assert (only.attack_ratio, only.start) == (0.1, "fresh")

    @pytest.mark.parametrize("family", Family)
    @pytest.mark.parametrize("steps", [4, 5, 320])
    def test_every_family_and_length_makes_a_plan_that_the_sandbox_can_supply(
        self, family: Family, steps: int
    ) -> None:
        Drill(families=(family,), steps=steps).plan().check_supply(SHIPPED)

    @pytest.mark.parametrize(
        "facts", [{"families": ()}, {"steps": 3}, {"steps": 321}, {"learning_rate": 0.1}]
    )
    def test_is_bounded(self, facts: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            Drill.model_validate(facts)
