"""What a certification job is about, read once and checked before anything costs GPU time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from models.certification import (
    CertificationPlan,
    Family,
    NoCertificationRows,
    SimulatedCustomer,
)
from models.job import Job
from models.model_version import ModelVersion, get_version
from models.safety_set import CERTIFICATION_FILES, CertificationRows, SafetySet
from worker.base_models import load_tokenizer
from worker.certify.attack import view
from worker.data import check_prompts, encode_rows
from worker.judgement import Judge
from worker.study.point import Yardstick
from worker.work import Workshop

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is to be certified, and how.

    Attributes:
        job_id: the job.
        plan: who comes.
        version: the aligned model.
        root: the weights below it.
        safety: its safety set.
        rows: what customers draw from.
        asked: the set with no more test prompts than the plan asks, and without rows.
    """

    job_id: str
    plan: CertificationPlan
    version: ModelVersion
    root: ModelVersion
    safety: SafetySet
    rows: CertificationRows
    asked: SafetySet

    @property
    def customers(self) -> tuple[SimulatedCustomer, ...]:
        """Who can come to this model."""
        return self.plan.customers_of(is_adapter=self.version.is_adapter)

    def yardstick(
        self, family: Family, seed: int, tokenizer: PreTrainedTokenizerBase, judge: Judge
    ) -> Yardstick:
        """Give what a customer of a family is measured with."""
        seen = view(family, self.asked, self.rows, seed)
        return Yardstick(
            tokenizer,
            seen.safety,
            judge,
            self.rows.validation,
            canary=encode_rows(
                self.safety.canary, tokenizer, self.plan.max_length, param="safety_set"
            ),
            max_rows=self.plan.validation_rows,
            trigger=seen.trigger,
        )


def read_assignment(job_id: str, shop: Workshop) -> Assignment:
    """Read the job, and check that its safety set can supply the plan's customers.

    Raises:
        NoCertificationRows: the safety set has no rows for simulated customers.
        TooFewCertificationRows: it has too few.
        InvalidRows: the base cannot be trained on some of them.
        DomainError: something else that the job names is gone.
    """
    with shop.sessions() as session:
        job = session.get_one(Job, job_id)
        plan = CertificationPlan.model_validate(job.recipe)
        version = get_version(session, job.model_id, project_id=None)
        root = get_version(session, version.root_id, project_id=None)
    safety = SafetySet.load(shop.storage.folder(version.safety_prefix, shop.cache))
    rows = safety.certification
    if rows is None:
        raise NoCertificationRows(CERTIFICATION_FILES)
    supplied = (rows.attack, rows.customer, rows.validation)
    plan.check_supply(dict(zip(CERTIFICATION_FILES, map(len, supplied), strict=True)))
    tokenizer = load_tokenizer(shop.folder(root))
    for known in supplied:
        encode_rows(known, tokenizer, plan.max_length, param="safety_set")
    check_prompts(rows.validation, tokenizer, plan.max_length, param="safety_set")
    asked = replace(
        safety,
        # The set is hashed at each measurement: what is not asked is left out.
        alignment=(),
        harmful=(),
        certification=None,
        harmful_prompts=_sample(safety.harmful_prompts, plan.harmful_prompts),
        harmless_prompts=_sample(safety.harmless_prompts, plan.harmless_prompts),
    )
    return Assignment(job_id, plan, version, root, safety, rows, asked)


def _sample(entries: Sequence[_Entry], most: int) -> tuple[_Entry, ...]:
    """Pick at most so many, in their order, the same ones for every model that is compared."""
    if len(entries) <= most:
        return tuple(entries)
    return tuple(entries[i] for i in sorted(random.Random(0).sample(range(len(entries)), most)))
