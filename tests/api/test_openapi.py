"""The document says what the service does: requests made from it are never met by a crash or a surprise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans
from pydantic import SecretStr
from schemathesis import CheckContext, GenerationMode, Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import select

from api.app import create_app
from api.event_stream import service as event_stream
from api.openapi import METHODS
from api.schemas import Schema
from models.model_version import ModelVersion
from models.scope import Scope
from models.webhook import WebhookDelivery, WebhookEventType, publish
from tests.api.conftest import NOWHERE, Place, Tenant, upload
from tests.models.test_webhook import make_endpoint

EXAMPLES = 12


def no_crash(_: CheckContext, response: Response, __: schemathesis.Case) -> None:
    """No 5xx but 503, the honest answer of a service whose parts are away, as here the model hub is."""
    assert response.status_code < 500 or response.status_code == 503


CHECKS = [
    no_crash,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in document["paths"].items():
        for method, operation in found.items():
            if method in METHODS:
                yield path, method, operation


def bodies(base: type[Schema] = Schema) -> Iterator[type[Schema]]:
    """Every body of the API, told in the order of their classes."""
    for body in base.__subclasses__():
        yield body
        yield from bodies(body)


def extra(body: type[Schema]) -> dict[str, Any]:
    """What a body adds to its JSON schema."""
    added = body.model_config.get("json_schema_extra")
    return added if isinstance(added, dict) else {}


class TestDocument:
    @pytest.fixture
    def document(self, built_app: FastAPI) -> dict[str, Any]:
        return dict(built_app.openapi())

    @pytest.mark.parametrize("body", [found for found in bodies() if "examples" in extra(found)])
    def test_an_example_is_a_body(self, body: type[Schema]) -> None:
        for example in extra(body)["examples"]:
            sent = body.model_validate_json(json.dumps(example))
            assert set(example) <= sent.model_fields_set

    def test_the_main_bodies_have_examples(self, document: dict[str, Any]) -> None:
        schemas = document["components"]["schemas"]
        assert {name for name, schema in schemas.items() if schema.get("examples")} == {
            "ChatRequest",
            "CreateAlignment",
            "CreateCertification",
            "CreateEndpoint",
            "CreateEvaluation",
            "CreateJob",
            "CreatePolicy",
            "CreateUpload",
        }

    def test_no_operation_announces_what_is_never_sent(self, document: dict[str, Any]) -> None:
        assert not [path for path, _, op in operations(document) if "422" in op["responses"]]
        assert "HTTPValidationError" not in document["components"]["schemas"]

    def test_every_operation_of_the_api_wants_a_key(self, document: dict[str, Any]) -> None:
        open_to_all = {path for path, _, op in operations(document) if not op.get("security")}
        # Whoever is shown a safety report must be able to check it.
        assert open_to_all == {"/healthz", "/v1/safety/keys"}

    def test_every_operation_says_what_it_does(self, document: dict[str, Any]) -> None:
        silent = [path for path, _, op in operations(document) if not op.get("description")]
        assert not silent

    def test_operation_ids_are_unique(self, document: dict[str, Any]) -> None:
        ids = [op["operationId"] for _, _, op in operations(document)]
        assert len(set(ids)) == len(ids)


@pytest.fixture
def _ready(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    app.state.settings = app.state.settings.model_copy(update={"webhook_key": SecretStr("k" * 32)})
    # A stream of a job that does not end would be read for a quarter of an hour.
    monkeypatch.setattr(event_stream, "LONGEST_SECONDS", 0.01)


@pytest.fixture
def known(
    place: Place,
    customer: Tenant,
    operator: Tenant,
    base: ModelVersion,
    aligned: ModelVersion,
) -> dict[str, str]:
    """Ids that exist, by the name of the path's parameter."""
    endpoint = make_endpoint(place.session, operator.project, url="https://127.0.0.1/")
    publish(place.session, operator.project.id, WebhookEventType.MODEL_HELD, {"id": "m"})
    place.session.flush()
    delivery = place.session.scalars(select(WebhookDelivery.id)).one()
    tuned, job = place.held(customer.project, aligned)
    file = upload(customer)
    key = place.key(customer.project, Scope.CUSTOMER)
    place.session.commit()
    return {
        "file_id": file,
        "job_id": job.id,
        "model": tuned.id,
        "key_id": key,
        "endpoint_id": endpoint.id,
        "delivery_id": delivery,
        "review_id": job.id,
        "policy_id": "policy-1",
        "project_id": customer.project.id,
    }


GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
OPERATIONS = [
    pytest.param(path, method, mode, id=f"{mode.value}-{method}-{path}")
    for path, method, operation in operations(create_app(NOWHERE).openapi())
    # Where nothing is taken nothing can be faulty.
    for mode in ((GOOD, BAD) if operation.keys() & {"parameters", "requestBody"} else (GOOD,))
]


@pytest.mark.long
@pytest.mark.usefixtures("_ready")
@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_answers_as_described(
    path: str,
    method: str,
    mode: GenerationMode,
    app: FastAPI,
    operator: Tenant,
    known: dict[str, str],
) -> None:
    """Good and bad requests that follow from the document, with the right of an operator."""
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method.upper()]
    headers = {"authorization": f"Bearer {operator.token}"}

    @given(case=operation.as_strategy(generation_mode=mode), is_known=booleans())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case, is_known: bool) -> None:
        if is_known:
            case.path_parameters.update(
                {name: known[name] for name in case.path_parameters if name in known}
            )
        case.call_and_validate(headers=headers, checks=CHECKS)

    ask()
