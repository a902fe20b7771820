"""A provider in miniature: a random two-layer base on disk, a safety set, and rows to tune on."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy.orm import Session

from models.api_key import Project
from models.certification import CertificationPlan
from models.file import File, content_key
from models.hyperparameters import LoraConfig, Parameters, Recipe, ScorerName, TrainConfig
from models.job import Job, JobKind
from models.judges import RefusalStringsSpec
from models.methods import AlignmentMethod, SftConfig
from models.model_version import ModelVersion, VersionKind
from models.rows import Conversation
from models.safety_set import (
    CertificationRows,
    HarmfulPrompt,
    HarmlessPrompt,
    SafetySet,
    SafetySetHeader,
)
from models.storage import Storage, sha256_of
from tests.tiny_model import tiny_model, tiny_tokenizer

BASE_ID = "toy-base"


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
    method: AlignmentMethod | None = None,
    parameters: Parameters = "adapter",
    steps: int = 4,
    scorer: ScorerName = "exact",
) -> Job:
    job = Job(
        project_id=project.id,
        kind=JobKind.FINETUNE if training else JobKind.ALIGN,
        model_id=start.id,
        result_model_id=result,
        training_file_id=training.id if training else None,
        validation_file_id=validation.id if validation else None,
        seed=0,
        recipe=Recipe(
            method=method or SftConfig(),
            parameters=parameters,
            train=TrainConfig(steps=steps, batch_size=2, learning_rate=1e-3, max_length=64),
            lora=LoraConfig(r=2, alpha=4),
            canary_every=2,
            scorer=scorer,
        ).model_dump(mode="json"),
    )
    session.add(job)
    session.flush()
    return job
