"""Parsing of jobs from mappings and JSON, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from batchmill.engine.contract.structure_check import TOO_COMPLEX, UNAVAILABLE
from batchmill.producer.errors import (
    JobRejected,
    StructureCheckUnavailable,
    UnsupportedParameter,
)

from .document import GenerationJob

#: Longest part of a field's name that a message shows.
_MAX_NAME_CHARS = 200
#: Errors of a number that is out of range. The message shows the number, which is not content.
_RANGE_ERRORS = ("less_than", "less_than_equal", "greater_than", "greater_than_equal")
_MAX_SHOWN_BITS = 64


def parse_job(data: Mapping[str, Any]) -> GenerationJob:
    """Return the job that a mapping describes.

    Raises:
        UnsupportedParameter: a parameter that this version does not support.
        JobRejected: a field is missing, unknown or out of range; the message names it, and never
            shows its content, except a number that is out of range.
    """
    try:
        return GenerationJob.model_validate(dict(data))
    except ValidationError as error:
        raise rejected_error(error) from None


def parse_document(document: bytes | str) -> GenerationJob:
    """Return the job in the JSON document of a record.

    Raises:
        JobRejected: as `parse_job`, or the document is not JSON.
    """
    try:
        return GenerationJob.model_validate_json(document)
    except ValidationError as error:
        raise rejected_error(error) from None


def rejected_error(error: ValidationError) -> JobRejected:
    """Return the error for a caller, made of pydantic's first error."""
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] == "unsupported_parameter":
            where = _dotted(detail) or str(detail["ctx"]["param"])
            return UnsupportedParameter(detail["msg"], param=where)
    for detail in details:
        if detail["type"] in (TOO_COMPLEX, UNAVAILABLE):
            where = _dotted(detail) or str(detail["ctx"]["param"])
            message = f"{where}: {detail['msg']}"
            if detail["type"] == UNAVAILABLE:
                return StructureCheckUnavailable(message, param=where)
            return JobRejected(message, code=TOO_COMPLEX, param=where)
    param = _dotted(details[0])
    also = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    fault = param or _named_first(details[0])
    return JobRejected(_message(details[0], param) + also, param=fault)


def _dotted(detail: ErrorDetails) -> str | None:
    """Return the path of the field at fault; None for the job as a whole."""
    return _shown(".".join(str(part) for part in detail["loc"])) or None


def _named_first(detail: ErrorDetails) -> str | None:
    """Return the field that a message about several fields begins with; None if it is no field."""
    word = detail["msg"].removeprefix("Value error, ").partition(" ")[0].rstrip(",:")
    return word if word in GenerationJob.model_fields else None


def _shown(name: str) -> str:
    """Return a name for a message: a key may be a megabyte, or hold lone surrogates."""
    name = name.encode(errors="backslashreplace").decode()
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}…"


def _message(detail: ErrorDetails, param: str | None) -> str:
    if detail["type"] == "extra_forbidden":
        owner = _canonical_name(str(param))
        if owner is not None:
            return f"{param} is another name for {owner}, which is given as well: give one of them"
        return f"{param} is not a parameter of a job: check the name, or leave it out"
    text = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "model_type":  # pydantic would name the Python class
        text = "Input should be an object"
    number = _number_out_of_range(detail)
    if param is not None and number is not None:
        return f"{param} is {number}: it {text.removeprefix('Input ')}"
    return text if param is None else f"{param}: {text}"


def _number_out_of_range(detail: ErrorDetails) -> str | None:
    """Return the number that is out of range, if an error is of that and it is short."""
    number = detail.get("input")
    if detail["type"] not in _RANGE_ERRORS or isinstance(number, bool):
        return None
    if isinstance(number, int):
        return str(number) if number.bit_length() <= _MAX_SHOWN_BITS else None
    return f"{number:g}" if isinstance(number, float) else None


def _canonical_name(alias: str) -> str | None:
    """Return the field that a name is an alias of, or None."""
    for name, field in GenerationJob.model_fields.items():
        choices = getattr(field.validation_alias, "choices", ())
        if alias in choices:
            return name
    return None
