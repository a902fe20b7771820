"""Every table, so that the metadata of `Base` is the whole schema. `models.session` brings them along."""

from __future__ import annotations

from models.api_key import ApiKey
from models.audit import AuditEntry
from models.base import Base
from models.data_risk import ScreenedRow, Screening
from models.evaluation import Evaluation
from models.file import File
from models.job import Job, JobEvent
from models.job_checkpoint import JobCheckpoint
from models.model_version import ModelVersion
from models.policy import SafetyPolicy
from models.project import Organization, Project
from models.project_use import ProjectUse
from models.review import Appeal, ReviewApproval
from models.stored_certificate import StoredCertificate
from models.upload import Upload, UploadPart
from models.webhook import WebhookDelivery, WebhookEndpoint, WebhookEvent
from models.worker import Worker

__all__ = [
    "ApiKey",
    "Appeal",
    "AuditEntry",
    "Base",
    "Evaluation",
    "File",
    "Job",
    "JobCheckpoint",
    "JobEvent",
    "ModelVersion",
    "Organization",
    "Project",
    "ProjectUse",
    "ReviewApproval",
    "SafetyPolicy",
    "ScreenedRow",
    "Screening",
    "StoredCertificate",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
    "Worker",
]
