"""The OpenAPI document of the gateway, made of its routes and of the tables of their fields.

`python -m batchmill.worker.gateway.spec FILE` writes it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter
from starlette.routing import Route

from batchmill.producer.job.document_schema import job_schema

from . import objects
from .operations import OPERATIONS, PATH_PARAM, Operation, documented_path

_REF = "#/components/schemas/{model}"
_SERVES = re.compile(r"Serve `[^`]*`(?:: |, )?")
_ENVELOPES = (objects.OpenAIErrors, objects.AnthropicErrors)
_KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key of a tenant is the same job or batch.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[!-~]+$"},
}
_ABOUT = (
    "The APIs of OpenAI and Anthropic before a durable queue. Every request becomes a job. What a "
    "field becomes is in the documentation, under HTTP APIs."
)


def render(document: Mapping[str, Any]) -> str:
    """Return the text of the document's file."""
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def openapi_document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the document.

    Raises:
        KeyError: a route is not described in `OPERATIONS`.
    """
    paths: dict[str, dict[str, Any]] = {}
    job = job_schema()
    schemas: dict[str, Any] = {**job.pop("$defs"), "Job": job}
    for method, path, route in operations_of(routes):
        operation = OPERATIONS[method, path]
        paths.setdefault(path, {})[method.lower()] = _operation(route, path, operation, schemas)
    errors = _errors(schemas)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "batchmill gateway", "version": "v1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": paths,
        "components": {
            "responses": errors,
            "schemas": {name: schemas[name] for name in sorted(schemas)},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    found: dict[str, Any] = _with_component_refs(document)
    return found


def operations_of(routes: Iterable[Route]) -> Iterator[tuple[str, str, Route]]:
    """Yield the method and path of each route, as the document writes them."""
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield method, documented_path(route.path), route


def _operation(
    route: Route, path: str, operation: Operation, schemas: dict[str, Any]
) -> dict[str, Any]:
    name = route.endpoint.__name__
    envelope = "Anthropic" if operation.api == "Anthropic" else "OpenAI"
    error = {"$ref": f"#/components/responses/{envelope}Error"}
    described: dict[str, Any] = {
        "operationId": name,
        "summary": name.replace("_", " ").capitalize(),
        "description": _description(route),
        "tags": [operation.api],
        "parameters": list(_parameters(path, operation)),
        "responses": {
            "200": _response(operation, schemas),
            "4XX": error,
            "5XX": error,
        },
    }
    if operation.is_open:
        described["security"] = []
    if operation.body is not None:
        title = operation.body.title
        schemas[title] = operation.body.schema()
        described["requestBody"] = _required("application/json", {"$ref": _ref(title)})
    if operation.form is not None:
        form = {"type": "object", "properties": operation.form, "required": ["file", "purpose"]}
        described["requestBody"] = _required("multipart/form-data", form)
    return described


def _description(route: Route) -> str:
    text = _SERVES.sub("", inspect.getdoc(route.endpoint) or "", count=1).strip()
    return text[:1].upper() + text[1:] if len(text) > 1 else ""


def _required(content_type: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {content_type: {"schema": schema}}}


def _parameters(path: str, operation: Operation) -> Iterator[dict[str, Any]]:
    for name in PATH_PARAM.findall(path):
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    for param in operation.query:
        about = {"name": param.name, "in": "query", "description": param.meaning}
        yield {**about, "schema": dict(param.schema)}
    if operation.is_repeatable:
        yield _KEY_HEADER


def _response(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.returns:
        choices = [_schema(model, schemas) for model in operation.returns]
        schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
        content["application/json"] = {"schema": schema}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if operation.content_type is not None:
        content[operation.content_type] = {"schema": {"type": "string"}}
    return {"description": "Success.", "content": content}


def _errors(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the responses of errors by their names; models are in both APIs."""
    openai, anthropic = (_schema(each, schemas) for each in _ENVELOPES)
    forms = {"Anthropic": anthropic, "OpenAI": {"anyOf": [openai, anthropic]}}
    return {
        f"{name}Error": {
            "description": f"An error, as {name}'s clients read it.",
            "content": {"application/json": {"schema": schema}},
        }
        for name, schema in forms.items()
    }


def _schema(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a model, and note the models in it."""
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    schema = adapter.json_schema(mode="serialization", ref_template=_REF)
    schemas.update(schema.pop("$defs", {}))
    if "title" not in schema:
        return schema
    title = re.sub(r"\W", "", schema["title"])
    schemas[title] = schema
    return {"$ref": _ref(title)}


def _ref(title: str) -> str:
    return _REF.format(model=title)


def _with_component_refs(value: Any) -> Any:
    """Return a value whose references within a job's schema lead to the components."""
    if isinstance(value, dict):
        return {
            name: each.replace("#/$defs/", "#/components/schemas/")
            if name == "$ref" and isinstance(each, str)
            else _with_component_refs(each)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_component_refs(each) for each in value]
    return value
