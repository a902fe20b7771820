"""The OpenAPI document: what FastAPI writes of the routes, with the errors that they really answer.

FastAPI announces its own 422 body, which nothing here sends: a faulty request is a 400 in OpenAI's envelope. The
errors that an operation can answer follow from what it takes, so they are derived here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "description": "Some errors carry more keys, for example `faults` of a file.",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, for a person."},
                "type": {"type": "string", "examples": ["invalid_request_error"]},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": ["string", "null"], "examples": ["model_not_found"]},
            },
        }
    },
}
STATUSES = {
    400: "The request is faulty; the message names the field.",
    401: "There is no key, or none that is valid.",
    403: "The key has not the scope.",
    404: "There is no such object, or it is another tenant's.",
    409: "The object's state allows it not; repeating changes nothing.",
    413: "The body is too large.",
    429: "A rate limit or a quota is reached; with `Retry-After` where waiting helps.",
    503: "A part of the service is away; try again.",
}
METHODS = frozenset({"get", "put", "post", "delete", "patch"})
TAKES_A_BODY = frozenset({"put", "post", "patch"})


def describe(app: FastAPI) -> None:
    """Let the app's document be made here, once, when it is first asked for."""
    app.openapi = _made_once(app)  # type: ignore[method-assign]


def _made_once(app: FastAPI) -> Callable[[], dict[str, Any]]:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    return document


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title,
        version=version("titer"),
        description=app.description,
        routes=app.routes,
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = ERROR
    for path, method, operation in _operations(made):
        responses = operation["responses"]
        responses.pop("422", None)
        for status in _statuses(path, method, operation):
            responses.setdefault(
                str(status),
                {
                    "description": STATUSES[status],
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}
                    },
                },
            )
    return made


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in METHODS:
                yield path, method, operation


def _statuses(path: str, method: str, operation: dict[str, Any]) -> list[int]:
    found = [503]
    if operation.get("security"):
        found += [401, 403, 429]
    if operation.get("parameters") or operation.get("requestBody"):
        found.append(400)
    if operation.get("requestBody") or _names_an_object(path, operation):
        # A body names objects as well: the model to be tuned, the file to be read.
        found.append(404)
    if method != "get":
        found.append(409)
    if method in TAKES_A_BODY:
        found.append(413)
    return sorted(found)


def _names_an_object(path: str, operation: dict[str, Any]) -> bool:
    names = [parameter["name"] for parameter in operation.get("parameters", ())]
    return "{" in path or any(name == "after" or name.endswith("_id") for name in names)
