"""The vocabulary that both processes share: tables, states, policy, rows, storage.

Imports every table, so that alembic and the tests see the whole schema.
"""

from models.api_key import ApiKey, Project
from models.base import Base
from models.evaluation import Evaluation
from models.file import File
from models.job import Job, JobEvent
from models.job_checkpoint import JobCheckpoint
from models.model_version import ModelVersion
from models.policy import SafetyPolicy
from models.stored_certificate import StoredCertificate

__all__ = [
    "ApiKey",
    "Base",
    "Evaluation",
    "File",
    "Job",
    "JobCheckpoint",
    "JobEvent",
    "ModelVersion",
    "Project",
    "SafetyPolicy",
    "StoredCertificate",
]
