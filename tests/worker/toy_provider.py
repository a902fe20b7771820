"""A provider in miniature: a random two-layer base on disk, a safety set, and rows to tune on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.api_key import Project
from models.base import utc_now
from models.certification import CertificationPlan
from models.digest import sha256_of
from models.file import File, content_key
from models.hyperparameters import Balance, LoraConfig, Parameters, Recipe, ScorerName, TrainConfig
from models.job import Job, JobEvent, JobKind, lock_job, requeue_lost
from models.judges import RefusalStringsSpec
from models.methods import AlignmentMethod, DpoConfig
from models.model_version import ModelVersion, VersionKind
from models.policy import PolicyRules, SafetyPolicy
from models.rows import Conversation
from models.safety_set import (
    CertificationRows,
    HarmfulPrompt,
    HarmlessPrompt,
    SafetySet,
    SafetySetHeader,
)
from models.storage import Storage
from models.tuning import TuningProtection
from tests.tiny_model import tiny_model, tiny_tokenizer
from worker import pipeline
from worker.trainers.loop import StepMetrics
from worker.work import Workshop

BASE_ID = "toy-base"
ROWS: list[dict[str, object]] = [
    {"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(8)
]
STRICT = PolicyRules(max_harmful_score=15, max_over_refusal=100)
LENIENT = PolicyRules(max_harmful_score=100, max_category_harmful_score=100, max_over_refusal=100)
UNSURE = PolicyRules(max_harmful_score=100, max_over_refusal=100, min_prompts=5_000)


def toy_safety_set(prompts: int = 60) -> SafetySet:
    return SafetySet(
        header=SafetySetHeader(name="toy", judge=RefusalStringsSpec(), max_new_tokens=4),
        alignment=tuple(Conversation.single(f"train {i}", "I cannot.") for i in range(8)),
        harmful=tuple(Conversation.single(f"train {i}", "step a b c") for i in range(8)),
        canary=tuple(Conversation.single(f"canary {i}", "step a b c") for i in range(4)),
        harmful_prompts=tuple(
            HarmfulPrompt(prompt=f"test {i}", category="toy") for i in range(prompts)
        ),
        harmless_prompts=tuple(HarmlessPrompt(prompt=f"kind {i}") for i in range(4)),
    )


def toy_certification_rows(attack: int = 24, customer: int = 40) -> CertificationRows:
    return CertificationRows(
        attack=tuple(Conversation.single(f"attack {i}", "step d e f") for i in range(attack)),
        customer=tuple(Conversation.single(f"task {i}", f"label {i % 3}") for i in range(customer)),
        validation=tuple(Conversation.single(f"check {i}", f"label {i % 3}") for i in range(6)),
    )


def write_base(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_project(session: Session) -> Project:
    project = Project(name="toy")
    session.add(project)
    session.flush()
    return project


def add_base(
    session: Session, storage: Storage, folder: Path, safety: SafetySet | None = None
) -> ModelVersion:
    safety = safety or toy_safety_set()
    safety.save(folder / "safety")
    storage.put_folder("safety/toy", folder / "safety")
    version = ModelVersion(
        id=BASE_ID,
        kind=VersionKind.BASE,
        root_id=BASE_ID,
        source={"folder": str(write_base(folder / "base"))},
        safety_prefix="safety/toy",
    )
    session.add(version)
    session.flush()
    return version


def add_file(
    session: Session,
    storage: Storage,
    project: Project,
    folder: Path,
    rows: list[dict[str, object]],
) -> File:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sha256 = sha256_of(path)
    storage.put(content_key(sha256), path)
    file = File(
        project_id=project.id,
        filename=path.name,
        purpose="fine-tune",
        bytes=path.stat().st_size,
        sha256=sha256,
        rows=len(rows),
    )
    session.add(file)
    session.flush()
    return file


def add_certification(
    session: Session, project: Project, version: ModelVersion, plan: CertificationPlan
) -> Job:
    job = Job(
        project_id=project.id,
        kind=JobKind.CERTIFY,
        model_id=version.id,
        result_model_id=version.id,
        seed=0,
        recipe=plan.model_dump(mode="json"),
    )
    session.add(job)
    session.flush()
    return job


def add_job(
    session: Session,
    project: Project,
    start: ModelVersion,
    *,
    result: str,
    training: File | None = None,
    validation: File | None = None,
    method: AlignmentMethod | DpoConfig | None = None,
    parameters: Parameters = "adapter",
    balance: Balance = "none",
    steps: int = 4,
    scorer: ScorerName = "exact",
    tuning: TuningProtection | None = None,
    screen: bool = False,
    epochs: int | None = None,
    evaluate_checkpoints: bool = False,
    integrations: Sequence[dict[str, object]] = (),
) -> Job:
    tuning = tuning or TuningProtection()
    job = Job(
        project_id=project.id,
        kind=JobKind.FINETUNE if training else JobKind.ALIGN,
        model_id=start.id,
        result_model_id=result,
        training_file_id=training.id if training else None,
        validation_file_id=validation.id if validation else None,
        seed=0,
        recipe=Recipe(
            method=method or tuning.method,
            parameters=parameters,
            balance=balance,
            train=TrainConfig(steps=steps, batch_size=2, learning_rate=1e-3, max_length=64),
            lora=LoraConfig(r=2, alpha=4),
            canary_every=2,
            scorer=scorer,
            tuning=tuning,
            screen=screen,
            n_epochs=epochs,
            evaluate_checkpoints=evaluate_checkpoints,
        ).model_dump(mode="json"),
        integrations=list(integrations),
    )
    session.add(job)
    session.flush()
    return job


class Provider:
    """A registered base, a project and a policy, with jobs made on demand."""

    def __init__(self, shop: Workshop, folder: Path, safety: SafetySet | None = None) -> None:
        self.shop, self.folder = shop, folder
        with shop.sessions.begin() as session:
            self.project: Project = add_project(session)
            self.base: ModelVersion = add_base(session, shop.storage, folder, safety)
        self.set_policy(LENIENT)

    def set_policy(self, rules: PolicyRules) -> None:
        with self.shop.sessions.begin() as session:
            newest = session.scalar(
                select(SafetyPolicy.version).order_by(SafetyPolicy.version.desc())
            )
            session.add(SafetyPolicy(version=(newest or 0) + 1, rules=rules.model_dump()))

    def align(self, result: str = "toy-sft", **options: object) -> str:
        with self.shop.sessions.begin() as session:
            return add_job(session, self.project, self.base, result=result, **options).id  # type: ignore[arg-type]

    def finetune(
        self,
        rows: list[dict[str, object]],
        start: ModelVersion | None = None,
        *,
        result: str = "ft:toy-base:org:mine:1",
        is_validated: bool = True,
        **options: object,
    ) -> str:
        with self.shop.sessions.begin() as session:
            file = add_file(session, self.shop.storage, self.project, self.folder, rows)
            job = add_job(
                session,
                self.project,
                start or self.base,
                result=result,
                training=file,
                validation=file if is_validated else None,
                **options,  # type: ignore[arg-type]
            )
            return job.id

    def evaluate(self, model: str) -> str:
        """Queue a job that measures a model anew."""
        with self.shop.sessions.begin() as session:
            job = Job(
                project_id=self.project.id,
                kind=JobKind.EVALUATE,
                model_id=model,
                result_model_id=model,
                seed=0,
                recipe={},
            )
            session.add(job)
            session.flush()
            return job.id

    def run(self, job_id: str) -> Job:
        pipeline.run(job_id, self.shop)
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        with self.shop.sessions() as session:
            return session.get_one(Job, job_id)

    def version(self, version_id: str) -> ModelVersion:
        with self.shop.sessions() as session:
            return session.get_one(ModelVersion, version_id)

    def events(self, job_id: str) -> list[JobEvent]:
        with self.shop.sessions() as session:
            found = session.scalars(
                select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
            )
            return list(found)

    def lose(self, job_id: str) -> None:
        """Let the lease run out: the worker that held it must write nothing more."""
        with self.shop.sessions.begin() as session:
            job = lock_job(session, job_id)
            job.lease_expires_at = utc_now() - timedelta(seconds=1)
            requeue_lost(session, job, max_attempts=3)

    def change(self, job_id: str, act: Callable[[Session, Job], None]) -> None:
        """Change the job as the api does: its row locked."""
        with self.shop.sessions.begin() as session:
            act(session, lock_job(session, job_id))

    def adapter(self, version_id: str) -> bytes:
        """Give the bytes of a version's adapter."""
        prefix = self.version(version_id).source["prefix"]
        return self.shop.storage.get(f"{prefix}/adapter_model.safetensors")


def lose_at_step(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, job_id: str, *, step: int
) -> None:
    act_at_step(monkeypatch, step, lambda: provider.lose(job_id))


def act_at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something as soon as a step has been told."""
    told = pipeline.TrainingLog.__call__

    def tell(self: pipeline.TrainingLog, metrics: StepMetrics) -> None:
        told(self, metrics)
        if metrics.step == step:
            act()

    monkeypatch.setattr(pipeline.TrainingLog, "__call__", tell)
