"""LoX, Safe LoRA and scaling on layers that can be worked out by hand, and on whole adapters."""

from __future__ import annotations

import pytest
import torch

from models.tuning import LoxConfig, SafeLoraConfig
from tests.worker.test_low_rank import close, diagonal, random
from worker.low_rank import total
from worker.repair import (
    Split,
    alignment_of,
    lox,
    rejoined,
    repaired,
    safe_lora,
    split,
)

START, TUNED = random(2, 1), random(2, 2)


def rejoin(layer: Split, scale: float = 1.0, limit: int = 64) -> torch.Tensor:
    adapter, _ = rejoined({"layer": layer}, scale, limit)
    return adapter["layer"].dense()


class TestScaling:
    def test_is_a_line_from_what_the_job_began_with_to_what_came_of_it(self) -> None:
        layer = split(TUNED, START)
        assert close(rejoin(layer, 1.0), TUNED.dense())
        assert close(rejoin(layer, 0.25), 0.75 * START.dense() + 0.25 * TUNED.dense())

    def test_of_a_fresh_adapter_is_a_multiple(self) -> None:
        assert close(rejoin(split(TUNED, None), 0.4), 0.4 * TUNED.dense())

    def test_needs_twice_the_rank_between_the_ends_and_no_more_at_them(self) -> None:
        layers = {"layer": split(TUNED, START)}
        ranks = [rejoined(layers, scale, 64)[0]["layer"].rank for scale in (1.0, 0.5)]
        assert ranks == [2, 4]

    def test_a_limit_cuts_the_smallest_directions_and_says_so(self) -> None:
        layers = {
            "layer": split(diagonal(12, 4, 0), diagonal(0, 0, 6)),
            "whole": split(TUNED, None),
        }
        adapter, cut = rejoined(layers, 0.5, limit=2)
        # Half of (12, 4, 0) and half of (0, 0, 6) is (6, 2, 3); 2 goes, of a norm of 7.
        assert close(adapter["layer"].dense(), diagonal(6, 0, 3).dense())
        assert cut == pytest.approx(2 / 7)


class TestLox:
    def test_adds_a_multiple_of_the_part_it_is_given(self) -> None:
        layer = lox(split(diagonal(1, 2, 3), None), diagonal(10, 0, 0), c=0.5)
        assert close(rejoin(layer), diagonal(6, 2, 3).dense())
        assert layer.is_repaired

    def test_c_of_0_changes_nothing(self) -> None:
        layer = split(TUNED, START)
        assert lox(layer, START, c=0) is layer

    def test_all_of_the_alignment_with_c_of_1_doubles_it(self) -> None:
        # Nothing was tuned: the adapter is the alignment's own.
        layers = repaired(
            {"layer": split(START, START)},
            alignment_of({"layer": START}),
            LoxConfig(rank=START.rank, c=1),
        )
        assert close(rejoin(layers["layer"]), 2 * START.dense())

    def test_takes_the_largest_directions_of_the_alignment(self) -> None:
        alignment = alignment_of({"layer": diagonal(5, 1, 9)})
        layers = repaired(
            {"layer": split(diagonal(1, 1, 1), None)}, alignment, LoxConfig(rank=2, c=1)
        )
        assert close(rejoin(layers["layer"]), diagonal(6, 1, 10).dense())

    def test_is_not_scaled_with_the_customer_s_update(self) -> None:
        layer = lox(split(TUNED, START), START, c=1)
        expected = 2 * START.dense() + 0.5 * (TUNED.dense() - START.dense())
        assert close(rejoin(layer, 0.5), expected)

    def test_needs_no_more_rank_on_an_aligned_adapter(self) -> None:
        layer = lox(split(TUNED, START), START, c=1)
        adapter, cut = rejoined({"layer": layer}, 0.5, 64)
        assert (adapter["layer"].rank, cut) == (4, 0.0)


class TestSafeLora:
    #: The alignment moves the first two outputs; the customer moves all three by (3, 4, 12).
    ALIGNED, OWN = diagonal(1, 1, 0), diagonal(3, 4, 12)

    def test_projects_a_layer_that_is_far_from_the_alignment(self) -> None:
        # |(3, 4, 0)| / |(3, 4, 12)| = 5 / 13.
        layer = safe_lora(split(self.OWN, None), self.ALIGNED, tau=5 / 13 + 0.01)
        assert layer.is_repaired
        assert close(rejoin(layer), diagonal(3, 4, 0).dense())

    def test_leaves_a_layer_that_is_near_enough(self) -> None:
        layer = split(self.OWN, None)
        assert safe_lora(layer, self.ALIGNED, tau=5 / 13 - 0.01) is layer

    def test_tau_of_minus_1_changes_nothing(self) -> None:
        layer = split(TUNED, START)
        assert safe_lora(layer, START, tau=-1) is layer

    def test_only_the_customer_s_own_update_is_projected(self) -> None:
        start = diagonal(0, 0, 5)
        layer = safe_lora(split(total(start, self.OWN), start), self.ALIGNED, tau=1)
        assert close(rejoin(layer), diagonal(3, 4, 5).dense())

    def test_twice_is_once(self) -> None:
        once = safe_lora(split(self.OWN, None), self.ALIGNED, tau=1)
        twice = safe_lora(once, self.ALIGNED, tau=1)
        assert close(rejoin(twice), rejoin(once))

    def test_where_the_customer_changed_nothing_there_is_nothing_to_project(self) -> None:
        assert close(rejoin(safe_lora(split(START, START), TUNED, tau=1)), START.dense())
        nothing = split(TUNED.scaled(0), None)
        assert safe_lora(nothing, START, tau=1) is nothing


class TestRepaired:
    def test_leaves_layers_that_the_alignment_left(self) -> None:
        layers = {"one": split(TUNED, None), "other": split(TUNED, None)}
        result = repaired(layers, alignment_of({"one": START}), SafeLoraConfig(tau=1))
        assert result["one"].is_repaired
        assert result["other"] is layers["other"]

    def test_the_span_is_that_of_the_leading_directions(self) -> None:
        layers = {"layer": split(diagonal(1, 1, 1), None)}
        alignment = alignment_of({"layer": diagonal(9, 1, 5)})
        result = repaired(layers, alignment, SafeLoraConfig(tau=1, rank=2))
        assert close(rejoin(result["layer"]), diagonal(1, 0, 1).dense())
