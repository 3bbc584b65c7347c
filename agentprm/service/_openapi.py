"""The parts of a service's OpenAPI document that routes cannot say: keys, and common problems."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from agentprm.protocol import Problem
from agentprm.service._auth import OPEN

_REF = "#/components/schemas/{model}"
_MEDIA = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ALWAYS = (401, 408, 413, 503)
"""What the middlewares answer, at every path that needs a key."""
_WITH_INPUT = (422,)
_WITH_BODY = (400,)
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route: it may answer with problems of these statuses."""
    return {status: _response(status) for status in statuses}


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_extra` of a route that reads its body by itself."""
    schema = model.model_json_schema(ref_template=_REF)
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def document(app: FastAPI) -> None:
    """Complete `app`'s OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(title=app.title, version=app.version, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(ref_template=_REF)
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "needed where the server has keys",
        }
    }
    for path, operation in _operations(schema):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            schemas.update(media["schema"].pop("$defs", {}))
        if path in OPEN:
            continue
        operation["security"] = [{"key": []}]
        if "401" in operation["responses"]:  # errors in a shape of its own, all of them declared
            continue
        statuses = list(_ALWAYS)
        if "parameters" in operation or "requestBody" in operation:
            statuses += _WITH_INPUT
        if "requestBody" in operation:
            statuses += _WITH_BODY
        for status in statuses:
            _declare(operation["responses"], status)
    schemas.update(schemas["Problem"].pop("$defs", {}))
    return schema


def _declare(responses: dict[str, Any], status: int) -> None:
    """Declare a problem, unless the route has said what it answers with this status."""
    said = responses.get(str(status))
    if said is None or "HTTPValidationError" in str(said):
        responses[str(status)] = _response(status)


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield path, operation


def _response(status: int) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, "content": _MEDIA}
