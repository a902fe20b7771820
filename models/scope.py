"""What an API key may do, and whose keys see every project."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """What a key may do."""

    #: Files, jobs and tuned models of the key's own project.
    CUSTOMER = "customer"
    #: See every project's jobs and models, and change nothing.
    VIEWER = "viewer"
    #: See what a viewer sees, and decide on held models.
    REVIEWER = "reviewer"
    #: Register bases, align, certify and evaluate them.
    PROVIDER = "provider"
    #: Run the service: tenants, keys, quotas and policies, and all that reviewers and providers may.
    OPERATOR = "operator"


#: Who sees every project's files, jobs and models.
STAFF = frozenset({Scope.VIEWER, Scope.REVIEWER, Scope.PROVIDER, Scope.OPERATOR})
