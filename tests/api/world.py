"""One tenant's objects in the states that the operations of the API want them in, or do not want them in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import select

from api.policies.schemas import CreatePolicy
from api.policies.service import create_policy
from api.webhooks.service import MAX_ENDPOINTS
from api.webhooks.signing import SecretBox, new_secret
from models.answers import keep_answers
from models.api_key import ApiKey, Project
from models.base import new_id, utc_now
from models.file import File
from models.hyperparameters import AlignHyperparameters, resolve_align
from models.job import Job, JobKind, JobStatus
from models.methods import TiterConfig
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import PolicyRules
from models.review import Appeal
from models.scope import Scope
from models.upload import Upload, UploadPart, UploadStatus
from models.webhook import WebhookDelivery, WebhookEndpoint, WebhookEventType, publish
from tests.api.adapters import store
from tests.api.base_folders import write_base, write_safety_set
from tests.api.certificates import SMALL_PLAN, certify, supply
from tests.api.conftest import Place, Tenant, rows
from tests.api.test_safety import screened
from tests.models.factories import make_answer
from tests.models.test_webhook import make_endpoint

WEBHOOK_KEY = "k" * 32
SETTINGS: dict[str, object] = {
    "webhook_key": SecretStr(WEBHOOK_KEY),
    "webhook_allow_private": True,
    "signing_key": SecretStr("0c" * 32),
    "adapter_export": "always",
}
HELLO = [{"role": "user", "content": "hello"}]
HOOK: dict[str, Any] = {
    "name": "hook",
    "url": "https://127.0.0.1/",
    "event_types": ["fine_tuning.job.failed"],
}


@dataclass(frozen=True)
class Ask:
    """A request: the ids in its path, what else it carries, and the id of the object that it is about."""

    ids: tuple[str, ...] = ()
    content: dict[str, Any] = field(default_factory=dict)
    about: str = ""


#: A lone id is the path's; for a list, that of an object which belongs on it.
Made = Ask | str | None


def body(about: str = "", **facts: object) -> Ask:
    return Ask(content={"json": facts}, about=about)


class World:
    """What one tenant has. Each method makes something and gives the request that is about it."""

    def __init__(self, place: Place, tenant: Tenant, aligned: ModelVersion, folder: Path) -> None:
        self.place = place
        self.project = tenant.project
        self.aligned = aligned
        self.folder = folder

    def nothing(self) -> None:
        """There is nothing to make."""

    # Files and uploads

    def new_file(self) -> Ask:
        return Ask(
            content={"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", rows())}}
        )

    def file(self) -> str:
        content = rows()
        file = File(
            project_id=self.project.id,
            filename="rows.jsonl",
            purpose="fine-tune",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            rows=12,
        )
        self._add(file)
        self.place.storage.put(file.storage_key, content)
        return file.id

    def file_in_use(self) -> str:
        file = self.file()
        self._finetune(training_file_id=file)
        return file

    def upload(self, status: UploadStatus = UploadStatus.PENDING) -> str:
        upload = Upload(
            project_id=self.project.id,
            filename="rows.jsonl",
            purpose="fine-tune",
            mime_type="application/jsonl",
            bytes=len(rows()),
            status=status,
        )
        self._add(upload)
        return upload.id

    def upload_and_part(self) -> Ask:
        return self._part(self.upload())

    def part_of_cancelled(self) -> Ask:
        return self._part(self.upload(UploadStatus.CANCELLED))

    def filled_upload(self) -> Ask:
        return self._filled(self.upload())

    def filled_cancelled(self) -> Ask:
        return self._filled(self.upload(UploadStatus.CANCELLED))

    def expired_upload(self) -> str:
        return self.upload(UploadStatus.EXPIRED)

    def _part(self, upload: str) -> Ask:
        return Ask((upload,), {"files": {"data": ("part", rows())}}, upload)

    def _filled(self, upload: str) -> Ask:
        part = UploadPart(upload_id=upload, bytes=len(rows()))
        self._add(part)
        self.place.storage.put(part.storage_key, rows())
        return Ask((upload,), {"json": {"part_ids": [part.id]}}, upload)

    # Jobs

    def new_job(self) -> Ask:
        file = self.file()
        return body(file, model=self.aligned.id, training_file=file)

    def reused_idempotency_key(self) -> Ask:
        self._finetune(replay_key="once", request_sha256="0" * 64)
        ask = self.new_job()
        return Ask(content={**ask.content, "headers": {"idempotency-key": "once"}})

    def queued(self) -> str:
        return self._finetune().id

    def paused(self) -> str:
        return self._finetune(status=JobStatus.PAUSED).id

    def ended(self) -> str:
        return self._finetune(status=JobStatus.SUCCEEDED).id

    def screened(self) -> str:
        job = self._finetune()
        screened(self.place, job, [0, 1, 0])
        return job.id

    def screened_row(self) -> Ask:
        job = self._finetune(training_file_id=self.file())
        screened(self.place, job, [0, 1, 0])
        return Ask((job.id, "2"), about=job.id)

    def alignment(self) -> str:
        return self._alignment(JobStatus.QUEUED)

    def paused_alignment(self) -> str:
        return self._alignment(JobStatus.PAUSED)

    def ended_alignment(self) -> str:
        return self._alignment(JobStatus.SUCCEEDED)

    def certification(self) -> str:
        return self._certification(JobStatus.QUEUED)

    def paused_certification(self) -> str:
        return self._certification(JobStatus.PAUSED)

    def ended_certification(self) -> str:
        return self._certification(JobStatus.SUCCEEDED)

    def evaluation(self) -> str:
        return self._evaluation(JobStatus.QUEUED)

    def paused_evaluation(self) -> str:
        return self._evaluation(JobStatus.PAUSED)

    def ended_evaluation(self) -> str:
        return self._evaluation(JobStatus.SUCCEEDED)

    def answered(self) -> str:
        version = self._tuned(Gate.RELEASED, JobStatus.SUCCEEDED)
        evaluation = self.place.evaluation(version, harmful=1)
        evaluation.report = {
            **evaluation.report,
            "answers_sha256": keep_answers(self.place.storage, [make_answer()]),
        }
        self.place.session.commit()
        return version.id

    def new_alignment(self) -> Ask:
        return body(model=self.aligned.root_id, name=new_id("booster"))

    def name_of_alignment_taken(self) -> Ask:
        return body(model=self.aligned.root_id, name=self.aligned.id)

    def new_certification(self) -> Ask:
        # A fresh one: a model is certified by one job at a time.
        model = self.place.version(new_id("booster"), VersionKind.ALIGNED, parent=self.aligned)
        self.place.session.commit()
        supply(self.place, model)
        return body(model=model.id)

    def certified_already(self) -> Ask:
        self.certification()
        supply(self.place, self.aligned)
        return body(model=self.aligned.id)

    def new_evaluation(self) -> Ask:
        # A fresh one: a model is measured by one job at a time.
        model = self.place.version(new_id("booster"), VersionKind.ALIGNED, parent=self.aligned)
        self.place.session.commit()
        return body(model=model.id)

    def evaluated_already(self) -> Ask:
        self.evaluation()
        return body(model=self.aligned.id)

    def _finetune(self, **facts: object) -> Job:
        job = self.place.job(self.project, self.aligned, **facts)
        self.place.session.commit()
        return job

    def _alignment(self, status: JobStatus) -> str:
        recipe = resolve_align(TiterConfig(), AlignHyperparameters(), seed=0)
        return self._finetune(
            kind=JobKind.ALIGN,
            model_id=self.aligned.root_id,
            recipe=recipe.model_dump(mode="json"),
            status=status,
        ).id

    def _certification(self, status: JobStatus) -> str:
        return self._finetune(
            kind=JobKind.CERTIFY,
            result_model_id=self.aligned.id,
            recipe=SMALL_PLAN,
            status=status,
        ).id

    def _evaluation(self, status: JobStatus) -> str:
        return self._finetune(
            kind=JobKind.EVALUATE, result_model_id=self.aligned.id, recipe={}, status=status
        ).id

    # Models and reviews

    def released(self) -> str:
        return self._tuned(Gate.RELEASED, JobStatus.SUCCEEDED).id

    def blocked(self) -> str:
        return self._tuned(Gate.BLOCKED, JobStatus.FAILED).id

    def held(self) -> str:
        version, _ = self._held()
        return version.id

    def parent(self) -> str:
        version = self._tuned(Gate.RELEASED, JobStatus.SUCCEEDED)
        self.place.version(
            new_id("ft:child"), VersionKind.TUNED, parent=version, project=self.project
        )
        self.place.session.commit()
        return version.id

    def stored(self) -> str:
        version = self._tuned(Gate.RELEASED, JobStatus.SUCCEEDED)
        store(self.place, version, self.folder / "adapter")
        return version.id

    def certified(self) -> str:
        certify(self.place, self.aligned)
        return self.aligned.id

    def new_base(self) -> Ask:
        name = new_id("base")
        return body(
            source=str(write_base(self.folder / name)),
            safety_set=str(write_safety_set(self.folder / f"safety-{name}")),
        )

    def name_of_base_taken(self) -> Ask:
        ask = self.new_base()
        return body(**ask.content["json"], name=self.aligned.id)

    def chat_with_released(self) -> Ask:
        model = self.released()
        return body(model, model=model, messages=HELLO)

    def chat_with_held(self) -> Ask:
        return body(model=self.held(), messages=HELLO)

    def prompt_for_released(self) -> Ask:
        model = self.released()
        return body(model, model=model, prompt="hello")

    def prompt_for_held(self) -> Ask:
        return body(model=self.held(), prompt="hello")

    def text_to_judge(self) -> Ask:
        model = self.released()
        return body(model, model=model, input="hello")

    def review(self) -> str:
        return self._held()[1].id

    def decided(self) -> str:
        return self._job_of(self._tuned(Gate.RELEASED, JobStatus.SUCCEEDED))

    def appealable(self) -> str:
        return self._job_of(self._tuned(Gate.BLOCKED, JobStatus.FAILED))

    def appealed(self) -> str:
        job = self.review()
        self._add(Appeal(job_id=job, key_id=self._own_key().id, text="Please look again."))
        return job

    def _tuned(self, gate: Gate, status: JobStatus) -> ModelVersion:
        job = self._finetune(status=status)
        version = self.place.version(
            job.result_model_id,
            VersionKind.TUNED,
            gate=gate,
            parent=self.aligned,
            project=self.project,
            job=job,
        )
        self.place.evaluation(version, harmful=5)
        self.place.session.commit()
        return version

    def _held(self) -> tuple[ModelVersion, Job]:
        held = self.place.held(self.project, self.aligned)
        self.place.session.commit()
        return held

    def _job_of(self, version: ModelVersion) -> str:
        assert version.job_id is not None
        return version.job_id

    # Policies

    def policy(self) -> str:
        return self._policy(self.project.id, is_active=True)

    def inactive_policy(self) -> str:
        return self._policy(self.project.id, is_active=False)

    def _policy(self, project_id: str, *, is_active: bool) -> str:
        asked = CreatePolicy(rules=PolicyRules(), project=project_id, activate=is_active)
        policy = create_policy(self.place.session, asked, by=self._own_key())
        self.place.session.commit()
        return f"policy-{policy.version}"

    # Projects and keys

    def own_project(self) -> str:
        return self.project.id

    def own_quotas(self) -> Ask:
        return Ask(content={"params": {"project_id": self.project.id}}, about=self.project.id)

    def used_project(self) -> str:
        self._finetune(status=JobStatus.SUCCEEDED, finished_at=utc_now())
        return self.project.id

    def other_project(self) -> str:
        project = self.place.project("other")
        self.place.session.commit()
        return project.id

    def name_of_project_taken(self) -> Ask:
        return body(name=self.project.name)

    def rename_to_taken(self) -> Ask:
        other = self.other_project()
        return Ask((other,), {"json": {"name": self.project.name}})

    def key(self) -> str:
        return self._key(self.project)

    def key_of_project(self) -> Ask:
        return Ask((self.project.id, self.key()))

    def admin_key(self) -> str:
        return self._key(self.project, Scope.OPERATOR)

    def last_admin_key(self) -> str:
        return self._own_key().id

    def last_key_of_project(self) -> Ask:
        return Ask((self.project.id, self._own_key().id))

    def revoked_key(self) -> str:
        key = self.place.session.get_one(ApiKey, self.key())
        key.revoked_at = utc_now()
        self.place.session.commit()
        return key.id

    def key_for_archived_project(self) -> Ask:
        project = self.place.project("old")
        project.archived_at = utc_now()
        self.place.session.commit()
        return body(name="k", scopes=["customer"], project=project.id)

    def _key(self, project: Project, scope: Scope = Scope.CUSTOMER) -> str:
        self.place.key(project, scope)
        self.place.session.commit()
        newest = select(ApiKey.id).order_by(ApiKey.created_at.desc()).limit(1)
        return self.place.session.scalars(newest.where(ApiKey.project_id == project.id)).one()

    def _own_key(self) -> ApiKey:
        oldest = select(ApiKey).order_by(ApiKey.created_at).limit(1)
        return self.place.session.scalars(oldest.where(ApiKey.project_id == self.project.id)).one()

    # Webhooks

    def endpoint(self) -> str:
        return self._endpoint().id

    def endpoint_without_secret(self) -> str:
        endpoint = make_endpoint(self.place.session, self.project)
        self.place.session.commit()
        return endpoint.id

    def too_many_endpoints(self) -> Ask:
        for _ in range(MAX_ENDPOINTS):
            make_endpoint(self.place.session, self.project)
        self.place.session.commit()
        return body(**HOOK)

    def delivery(self) -> Ask:
        endpoint = self._endpoint()
        publish(self.place.session, self.project.id, WebhookEventType.MODEL_HELD, {"id": "m"})
        self.place.session.commit()
        delivery = self.place.session.scalars(
            select(WebhookDelivery.id).where(WebhookDelivery.endpoint_id == endpoint.id)
        ).one()
        return Ask((endpoint.id, delivery), about=endpoint.id)

    def delivery_to_disabled(self) -> Ask:
        ask = self.delivery()
        endpoint = self.place.session.get_one(WebhookEndpoint, ask.about)
        endpoint.disabled_at = utc_now()
        self.place.session.commit()
        return ask

    def _endpoint(self) -> WebhookEndpoint:
        sealed = SecretBox(WEBHOOK_KEY).seal(new_secret())
        endpoint = make_endpoint(
            self.place.session, self.project, url="https://127.0.0.1/", sealed_secret=sealed
        )
        self.place.session.commit()
        return endpoint

    def _add(self, row: object) -> None:
        self.place.session.add(row)
        self.place.session.commit()
