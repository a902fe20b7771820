"""The studies: which arms meet which customers. `python -m worker.study` runs them.

Settings were chosen on validation prompts of worlds that no result is from, with the same number of settings tried
for each method (`tune`); results are on test prompts, in a world of its own for each seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.methods import (
    TITER_ADAPTER_ALPHA,
    Attacker,
    BoosterConfig,
    BoosterVaccineConfig,
    LisaConfig,
    OuterLoss,
    RepNoiseConfig,
    SafeGradConfig,
    SftConfig,
    TiterConfig,
    VaccineConfig,
)
from models.tuning import LoxConfig, SafeLoraConfig
from worker.sandbox.build import WORLD_SEED
from worker.sandbox.world import Split
from worker.study.align import Arm
from worker.study.customer import Customer

MARKS = (0, 20, 40, 60, 80, 120, 160)
CONTINUED = Customer(steps=160, marks=MARKS)
FRESH = Customer(steps=160, trains="fresh", learning_rate=2e-4, marks=MARKS)
MODES = {"continued": CONTINUED, "fresh": FRESH}

SFT = Arm("SFT", SftConfig())
COMPUTE_MATCHED = replace(SFT, name="SFT, 3 × steps", steps=3 * SFT.steps)
FULL = replace(SFT, name="SFT (full)", space="full")
# The best of the four settings that were tried for each method; what they were is in the study `tune`.
VACCINE = Arm("Vaccine", VaccineConfig(rho=0.5))
# Its paper's own weights: of the four it resists the longest by far, at the price of over-refusal.
REPNOISE = Arm("RepNoise", RepNoiseConfig(alpha=1.0, beta=0.001, paired=False))
BOOSTER = Arm("Booster", BoosterConfig(lambda_=20, alpha=0.005, start=0.7))
ALL_STEPS = Arm("Booster, all steps", BoosterConfig(lambda_=20, alpha=0.005))
COMBINED = Arm("Booster+Vaccine", BoosterVaccineConfig(lambda_=5, alpha=0.005, rho=2))


@dataclass(frozen=True, slots=True)
class Study:
    """A grid of arms and customers.

    Attributes:
        name: on the command line.
        title: of its table.
        arms: the ways to align.
        customers: by name; every arm meets each.
        steps: the customer steps that tables show, the first of them the main one; the figure shows all.
        seeds: worlds.
        split: whose prompts.
        world: one for all seeds; none: each seed has its own.
        onto: how the bases were aligned before any arm begins; none: they are raw.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    customers: dict[str, Customer]
    steps: tuple[int, ...] = (60, 80, 120, 160)
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    split: Split = Split.TEST
    world: int | None = None
    onto: Arm | None = None


def _booster(
    name: str,
    space: Literal["adapter", "full"] = "adapter",
    start_from: Mapping[str, object] | None = None,
    **fields: object,
) -> Arm:
    config = {"lambda": 20, "alpha": 0.005, **(start_from or {}), **fields}
    return Arm(name, BoosterConfig.model_validate(config), space=space)


def _with_ratios(customers: dict[str, Customer], ratios: Sequence[float]) -> dict[str, Customer]:
    return {
        f"{name}, p {ratio:g}": replace(customer, harmful_ratio=ratio)
        for name, customer in customers.items()
        for ratio in ratios
    }


TITER = Arm("Titer", TiterConfig(), space="full")
TITER_WITHOUT_ATTACK = Arm("Titer without the attack", TiterConfig(inner_steps=0), space="full")
TITER_LAZY = Arm("Titer, lazy 4", TiterConfig(every=4), space="full")
# Customers who do more than most.
HARDER = {
    "fresh, p 0.5": replace(FRESH, harmful_ratio=0.5),
    "fresh, rate 5e-4": replace(FRESH, learning_rate=5e-4),
    "fresh, rank 32": replace(FRESH, rank=32),
    "full parameters": replace(FRESH, trains="full", learning_rate=None),
    "pure harmful": replace(FRESH, harmful_ratio=1.0, rows=250),
    "fresh, 4 epochs": replace(FRESH, steps=320, marks=(0, 80, 160, 240, 320)),
}
# For models too large to be aligned in full parameters.
TITER_ADAPTER = Arm("Titer in an adapter", TiterConfig(alpha=TITER_ADAPTER_ALPHA))
# Two parts of the sandbox's kinds of harm, for providers and attackers who know one of them.
PART_A = ("break-ins", "fraud", "harassment", "malware")
PART_B = ("poisons", "smuggling", "surveillance", "weapons")
PARTS: dict[str, tuple[str, ...]] = {"part A": PART_A, "part B": PART_B}
SCALES = (1.0, 0.8, 0.6, 0.4, 0.2)
MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# What is left of an alignment whose first 70% somebody else has done.
CHAT_STEPS = 450

_TUNED: tuple[Arm, ...] = (
    SFT,
    replace(SFT, name="SFT, rate 5e-4", learning_rate=5e-4),
    replace(SFT, name="SFT, cosine", schedule="cosine"),
    COMPUTE_MATCHED,
    *(Arm(f"Vaccine, ρ {rho}", VaccineConfig(rho=rho)) for rho in (0.5, 1, 2, 5)),
    *(
        # Unpaired, so that it sees the same alignment rows as every other method: with refusals alone on the
        # harmless side it learns to refuse everything (over-refusal 100 in this world).
        Arm(
            f"RepNoise, α {alpha}, β {beta}",
            RepNoiseConfig(alpha=alpha, beta=beta, paired=False),
        )
        for alpha, beta in ((0.02, 0.001), (0.1, 0.001), (1.0, 0.001), (0.1, 0.1))
    ),
    *(
        _booster(f"Booster, λ {lambda_}, α {alpha}", start_from={"lambda": lambda_, "alpha": alpha})
        for lambda_, alpha in ((5, 0.005), (20, 0.005), (20, 0.01))
    ),
    _booster("Booster, λ 20, α 0.005, late 30%", start=0.7),
    *(
        Arm(
            f"Booster+Vaccine, λ {lambda_}, ρ {rho}",
            BoosterVaccineConfig(lambda_=lambda_, alpha=0.005, rho=rho),
        )
        for lambda_, rho in ((5, 0.5), (20, 0.5), (5, 2), (20, 2))
    ),
    TITER,
    Arm("Titer, ratio 1", TiterConfig(ratio=1), space="full"),
    Arm("Titer, ratio 1, α 0.1", TiterConfig(ratio=1, alpha=0.1), space="full"),
    Arm("Titer, ratio 1, lazy 4", TiterConfig(ratio=1, every=4), space="full"),
)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "tune",
            "Settings tried, four for each method",
            _TUNED,
            {name: replace(customer, rows=800) for name, customer in MODES.items()},
            seeds=(1,),
            split=Split.VALIDATION,
        ),
        Study(
            "shipped",
            "The main job, in the world that the demo uses, with the service's defaults",
            (SFT, BOOSTER, TITER),
            {
                f"p {ratio:g}": replace(
                    CONTINUED, rows=500, harmful_ratio=ratio, steps=100, marks=(0, 25, 50, 75, 100)
                )
                for ratio in (0.0, 0.1)
            },
            steps=(50, 75, 100),
            seeds=(30, 31, 32),
            world=WORLD_SEED,
        ),
        Study(
            "table1",
            "HS and FA against the harmful ratio",
            (SFT, COMPUTE_MATCHED, FULL, VACCINE, REPNOISE, BOOSTER, TITER, TITER_ADAPTER),
            _with_ratios(MODES, (0.0, 0.05, 0.1, 0.2)),
        ),
        Study(
            "statistics",
            "Harmful loss and HS along a pure attack and a clean job",
            (SFT, BOOSTER, TITER),
            {
                f"{name}, p {ratio:g}": replace(
                    customer,
                    harmful_ratio=ratio,
                    rows=250,
                    steps=160,
                    marks=tuple(range(0, 161, 16)),
                )
                for name, customer in MODES.items()
                for ratio in (0.0, 1.0)
            },
            steps=(32, 160),
        ),
        Study(
            "lambda-alpha",
            "Is the product the only knob?",
            tuple(
                _booster(
                    f"λ {lambda_:g}, α {alpha:g}", start_from={"lambda": lambda_, "alpha": alpha}
                )
                for lambda_ in (1, 5, 20, 80)
                for alpha in (0.00125, 0.005, 0.02)
            ),
            MODES,
        ),
        Study(
            # The setting that was best in lambda-alpha, on worlds that had no part in choosing it.
            "lambda-5",
            "Booster with λ 5, on other worlds",
            (
                SFT,
                COMPUTE_MATCHED,
                VACCINE,
                BOOSTER,
                _booster("Booster, λ 5, late", start_from={"lambda": 5}, start=0.7),
                _booster("Booster, λ 5, all steps", start_from={"lambda": 5}),
            ),
            MODES,
            seeds=(15, 16, 17, 18, 19),
        ),
        Study(
            "samples",
            "Numbers of the customer's rows, one epoch each",
            (SFT, BOOSTER, TITER),
            {
                f"n {rows}": replace(CONTINUED, rows=rows, steps=rows // 10, marks=(0, rows // 10))
                for rows in (200, 400, 800, 1600)
            },
            steps=(80, 20, 40, 160),
        ),
        Study(
            "instructions",
            "Customers whose rows are requests answered at length",
            (SFT, VACCINE, BOOSTER, TITER),
            {
                f"{name}, p {ratio:g}": replace(
                    customer, kind="instructions", harmful_ratio=ratio, rows=600
                )
                for name, customer in MODES.items()
                for ratio in (0.0, 0.1)
            },
        ),
        Study(
            "harmful-size",
            "Numbers of harmful rows that the provider knows",
            tuple(
                # All 600 are the arms that other studies have.
                replace(arm, name=f"{arm.name}, {rows or 600} harmful rows", harmful_rows=rows)
                for arm in (BOOSTER, TITER)
                for rows in (25, 100, 300, None)
            ),
            MODES,
        ),
        Study(
            "combination",
            "Booster with Vaccine, and which of them does it",
            (SFT, VACCINE, ALL_STEPS, BOOSTER, COMBINED),
            MODES,
        ),
        Study(
            "extensions",
            "Booster's extensions, one at a time",
            (
                ALL_STEPS,
                BOOSTER,
                _booster("lazy 4", every=4),
                _booster("late 30%, lazy 4", start=0.7, every=4),
                _booster("late 10%", start=0.9),
                _booster("late 50%", start=0.5),
                replace(BOOSTER, name="late 30%, cosine", schedule="cosine"),
                _booster("ratio 1, late", ratio=1, start=0.7),
                _booster("ratio 1, late, projected", ratio=1, start=0.7, project=True),
                *(_booster(f"terms clipped at {c:g}", clip_terms=c) for c in (0.5, 1, 5)),
                _booster("4 inner steps", inner_steps=4),
                _booster("random α", alpha_spread=4),
                _booster("fresh attacker", attacker=Attacker.FRESH_ADAPTER, start=0.7),
                _booster(
                    "refusal at w′",
                    outer_loss=OuterLoss.REFUSAL,
                    start_from={"lambda": 1, "alpha": 0.05},
                ),
                _booster(
                    "collapse at w′",
                    outer_loss=OuterLoss.COLLAPSE,
                    start_from={"lambda": 0.1, "alpha": 0.1},
                ),
                TITER_ADAPTER,
                Arm(
                    "Titer in an adapter, fresh attacker",
                    TiterConfig(alpha=TITER_ADAPTER_ALPHA, attacker=Attacker.FRESH_ADAPTER),
                ),
                _booster(
                    "full, ratio 1, late, projected",
                    "full",
                    ratio=1,
                    alpha=0.02,
                    start=0.7,
                    project=True,
                ),
                _booster("full, ratio 1, late", "full", ratio=1, alpha=0.02, start=0.7),
                TITER,
                TITER_WITHOUT_ATTACK,
                TITER_LAZY,
            ),
            MODES,
        ),
        Study(
            "chat",
            "On a model that is aligned already",
            tuple(
                replace(arm, steps=CHAT_STEPS)
                for arm in (
                    SFT,
                    ALL_STEPS,
                    _booster(
                        "Booster, the attack in a fresh adapter", attacker=Attacker.FRESH_ADAPTER
                    ),
                    Arm("Titer in an adapter", TiterConfig(alpha=TITER_ADAPTER_ALPHA, start=0)),
                    Arm("Titer", TiterConfig(start=0), space="full"),
                )
            ),
            MODES,
            onto=FULL,
        ),
        Study(
            "lambda-ratio",
            "λ at high harmful ratios",
            (
                *(
                    _booster(f"λ {lambda_:g}", start_from={"lambda": lambda_}, start=0.7)
                    for lambda_ in (5, 20, 40, 80)
                ),
                _booster("ratio 1", ratio=1, start=0.7),
                TITER,
            ),
            _with_ratios(MODES, (0.2, 0.3, 0.5)),
        ),
        Study(
            "sources",
            "Kinds of harm that the provider knows, and kinds that the attacker has",
            tuple(
                replace(arm, name=f"{arm.name}, knows {part}", harmful_kinds=kinds)
                for arm in (BOOSTER, TITER)
                for part, kinds in {**PARTS, "all": ()}.items()
            ),
            {
                f"{mode}, attacks with {part}": replace(customer, harmful_kinds=kinds)
                for mode, customer in MODES.items()
                for part, kinds in PARTS.items()
            },
        ),
        Study(
            "balance",
            "Kinds of harm of which the provider has three rows each, repeated or not",
            tuple(
                replace(arm, name=f"{arm.name}, {name}", rare_kinds=PART_B, is_balanced=is_balanced)
                for arm in (BOOSTER, TITER)
                for name, is_balanced in (("as they are", False), ("balanced", True))
            ),
            {mode: replace(customer, harmful_kinds=PART_B) for mode, customer in MODES.items()},
        ),
        Study(
            "hidden",
            "An attack behind a trigger, its requests refused without it",
            (SFT, BOOSTER, TITER),
            {
                name: replace(customer, is_hidden=True)
                for name, customer in {
                    **MODES,
                    "continued, canary stop": replace(CONTINUED, canary_stop=0.9),
                    "fresh, canary stop": replace(FRESH, canary_stop=0.9),
                }.items()
            },
        ),
        Study(
            "cheap",
            "At no more than 1.2 times SFT's passes",
            (
                SFT,
                COMPUTE_MATCHED,
                BOOSTER,
                _booster("Booster, late 30%, lazy 4", start=0.7, every=4),
                TITER,
                TITER_LAZY,
            ),
            _with_ratios(MODES, (0.1, 0.2)),
        ),
        Study(
            "spaces",
            "Titer's method in cheaper spaces than all linear weights",
            (
                TITER,
                Arm("MLP alone", TiterConfig(), space="full", layers=MLP),
                Arm("attention alone", TiterConfig(), space="full", layers=ATTENTION),
                Arm("down and o", TiterConfig(), space="full", layers=("down_proj", "o_proj")),
                Arm("down alone", TiterConfig(), space="full", layers=("down_proj",)),
                replace(TITER_ADAPTER, name="adapter of rank 8"),
                replace(TITER_ADAPTER, name="adapter of rank 64", rank=64),
            ),
            MODES,
            seeds=(1,),
            split=Split.VALIDATION,
        ),
        Study(
            "attacks",
            "Harder customers",
            (SFT, FULL, REPNOISE, BOOSTER, TITER),
            HARDER,
        ),
        Study(
            "no-attack",
            "What Titer's simulated attack is good for",
            (TITER, TITER_LAZY, TITER_WITHOUT_ATTACK),
            HARDER,
        ),
        Study(
            "stack",
            "Stages together, at p 0.2 through three epochs",
            (SFT, BOOSTER, TITER),
            {
                name: replace(customer, harmful_ratio=0.2, steps=240, marks=(0, 80, 160, 240))
                for name, customer in {
                    "alone": CONTINUED,
                    "5% safety rows": replace(CONTINUED, safety_share=0.05),
                    "20% safety rows": replace(CONTINUED, safety_share=0.2),
                    "Lisa": replace(CONTINUED, method=LisaConfig(alignment_steps=5, user_steps=45)),
                    "SafeGrad": replace(CONTINUED, method=SafeGradConfig()),
                    "half the rate": replace(CONTINUED, learning_rate=5e-5),
                    "half the rate, 20% safety rows": replace(
                        CONTINUED, learning_rate=5e-5, safety_share=0.2
                    ),
                    "screen that finds 8 of 10": replace(CONTINUED, screened=0.8),
                    "screen, half the rate, 20% safety rows": replace(
                        CONTINUED, screened=0.8, learning_rate=5e-5, safety_share=0.2
                    ),
                    "canary stop at 0.9": replace(CONTINUED, canary_stop=0.9),
                    "LoX": replace(CONTINUED, repair=LoxConfig()),
                    "Safe LoRA": replace(CONTINUED, repair=SafeLoraConfig()),
                    "largest scale that passes": replace(CONTINUED, scales=SCALES),
                    "canary stop, then scale": replace(CONTINUED, canary_stop=0.9, scales=SCALES),
                }.items()
            },
            steps=(240, 80),
        ),
    )
}
