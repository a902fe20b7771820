"""Public names of the provider's models: what they look like, and that each is given once."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.locks import lock_name
from models.errors import Conflict, DomainError
from models.job import TERMINAL, Job
from models.model_version import ModelVersion

# Letters, digits and . _ - in parts between slashes, as hub repositories are named. No colon: tuned
# models have names with colons.
NAME_PATTERN = r"^[A-Za-z0-9](?:/?[A-Za-z0-9._-])*$"
MAX_NAME = 96
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME)]


# `/v1/models/NAME/certificate` is an address of its own.
RESERVED_ENDING = "/certificate"


class NameReserved(DomainError):
    """A model's name must not end in /certificate. Choose another `name`."""

    code = "model_name_reserved"


class NameTaken(Conflict):
    """A model has this name, or a job that has not ended will make one. Choose another `name`."""

    code = "model_name_taken"


def claim_name(session: Session, name: str) -> None:
    """Make sure that a public name is free, and stays so until the transaction ends.

    Names of deleted models stay taken: lineage and old jobs speak of them.

    Raises:
        NameTaken: it is not.
        NameReserved: the name would hide another model's certificate.
    """
    if name.endswith(RESERVED_ENDING):
        raise NameReserved(param="name")
    lock_name(session, "model", name)
    maker = select(Job.id).where(Job.result_model_id == name, Job.status.not_in(TERMINAL)).limit(1)
    if session.get(ModelVersion, name) is not None or session.scalar(maker) is not None:
        raise NameTaken(
            f"The name {name!r} is taken by a model, or by a job that has not ended. "
            "Choose another `name`.",
            param="name",
        )
