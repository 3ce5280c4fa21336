"""The JSON schema of a job's document: all that submit accepts, made of the checks themselves."""

from __future__ import annotations

from typing import Any, Final

from pydantic import AliasChoices

from batchmill.engine.contract.kinds import SECTIONS
from batchmill.engine.contract.limits import MAX_LOGPROBS
from batchmill.engine.contract.unsupported import UNSUPPORTED_FIELDS

from .document import GenerationJob
from .messages import NEUTRAL_FIELDS

_NULL: Final = {"type": "null"}
#: Forms of other APIs, which `read_other_forms` reads.
OTHER_FORMS: Final[dict[str, Any]] = {
    "do_sample": {"type": ["boolean", "null"], "description": "false is a temperature of 0."},
    "top_logprobs": {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}, _NULL],
        "description": "OpenAI's number of `logprobs`, beside `logprobs: true`.",
    },
}


#: Fields of which a job has exactly one.
_INPUTS: Final = ("prompt", "messages", *SECTIONS.values())


def is_supported(name: str) -> bool:
    """Return whether a field of the schema does something."""
    return name not in UNSUPPORTED_FIELDS


def is_other_name(name: str) -> bool:
    """Return whether a field of the schema is another name or form of a field."""
    return name not in GenerationJob.model_fields and is_supported(name)


def job_schema() -> dict[str, Any]:
    """Return the schema of a job, as it is submitted.

    It has every name, form and neutral value that submit accepts. Submit checks more: rules between
    fields, sizes in bytes, and whether a structure can be enforced.
    """
    schema = GenerationJob.model_json_schema(by_alias=False)
    properties: dict[str, Any] = schema["properties"]
    for name, field in GenerationJob.model_fields.items():
        properties[name] = _nullable(properties[name])
        if isinstance(field.validation_alias, AliasChoices):
            for alias in field.validation_alias.choices:
                properties.setdefault(str(alias), _alias(name, properties[name]))
    properties["logprobs"]["anyOf"].append({"type": "boolean"})
    properties |= OTHER_FORMS
    for name, unsupported in UNSUPPORTED_FIELDS.items():
        properties[name] = _neutral(unsupported.neutral, unsupported.remedy)
    for name, values in NEUTRAL_FIELDS.items():
        _allow(schema["$defs"]["Message"]["properties"], name, values)
    schema["oneOf"] = [_only_input(name) for name in _INPUTS]
    return schema


def _only_input(name: str) -> dict[str, Any]:
    """Return the schema of a job whose input is in one field."""
    others = {other: _NULL for other in _INPUTS if other != name}
    return {"required": [name], "properties": {name: {"not": _NULL}, **others}}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may be null, which is what a missing field is."""
    choices = schema.get("anyOf")
    if choices is not None:
        return schema if _NULL in choices else {**schema, "anyOf": [*choices, _NULL]}
    outside: dict[str, Any] = {}
    inside: dict[str, Any] = {}
    for key, value in schema.items():
        (outside if key in ("title", "description", "default") else inside)[key] = value
    return {**outside, "anyOf": [inside, _NULL]}


def _alias(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of another name of a field."""
    return {"anyOf": schema["anyOf"], "description": f"Another name of `{name}`."}


def _neutral(values: tuple[Any, ...], remedy: str | None = None) -> dict[str, Any]:
    about = "Not supported: only values without effect."
    return {"enum": list(values), "description": f"{about} Instead: {remedy}." if remedy else about}


def _allow(properties: dict[str, Any], name: str, values: tuple[Any, ...]) -> None:
    """Allow the neutral values of a field, beside those that it has in its own right."""
    if name in properties:
        properties[name]["anyOf"].append({"enum": list(values)})
    else:
        properties[name] = _neutral(values)
