"""Options, checks and errors that the models of a job's document share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.structure_check import TOO_COMPLEX, UNAVAILABLE

STRICT: Final = ConfigDict(
    strict=True,
    extra="forbid",
    frozen=True,
    allow_inf_nan=False,
    # A prompt must not end up in a log because something else in the job was wrong.
    hide_input_in_errors=True,
    # The text below a field is its description: in the schema, the reference and IDEs.
    use_attribute_docstrings=True,
)


def check_utf8(text: str) -> str:
    """Return a text that UTF-8 can encode: pydantic lets lone surrogates through.

    Raises:
        ValueError: it has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate, which UTF-8 cannot encode") from None
    return text


def check_depth(value: Any, limit: int) -> None:
    """Check that JSON is not nested too deep for readers of the job's document.

    Raises:
        ValueError: an object or list lies inside more than `limit` others.
    """
    layer, depth = [value], 0
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        if depth > limit:
            raise ValueError(f"is nested more than {limit} deep, the limit; make it flatter")
        layer = [
            inner for item in layer for inner in (item.values() if isinstance(item, dict) else item)
        ]


def check_num_parts(value: Any, limit: int) -> None:
    """Check that JSON does not have so many keys, objects and lists that checking them takes long.

    Raises:
        ValueError: it has more than `limit` of them together.
    """
    parts, num_keys = [value], 0
    for part in parts:  # it grows meanwhile
        inner: Iterable[Any] = part
        if type(part) is dict:
            num_keys += len(part)
            inner = part.values()
        for each in inner:
            kind = type(each)  # JSON has no subclasses, and this is the quicker test
            if kind is dict or kind is list:
                parts.append(each)
        if num_keys + len(parts) > limit:
            raise ValueError(
                f"has more than {limit} keys, objects and lists, the limit; make it smaller"
            )


def integral(value: Any) -> Any:
    """Return 2.0 as 2, also inside lists: JSON has one type of number, and so has JSON Schema.

    A tuple is returned as a list, which is what JSON makes of it.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list) and any(isinstance(item, float | list | tuple) for item in value):
        return [integral(item) for item in value]
    return value


Text = Annotated[str, AfterValidator(check_utf8)]


def optional(default: Any, **constraints: Any) -> Any:
    """Return a field that is left out of a job's document while it has its default."""
    return Field(default=default, exclude_if=lambda value: value == default, **constraints)


def validation_error(error: ContractError, param: str) -> ValueError:
    """Return the error for pydantic to collect when a request breaks the contract.

    Args:
        error: The error of the contract.
        param: The field to blame for an `unsupported_parameter`.
    """
    if error.code == "invalid_request":
        return ValueError(error.message)
    context = {"message": error.message, "param": param}
    if error.code in (TOO_COMPLEX, UNAVAILABLE):
        return PydanticCustomError(error.code, "{message}", context)
    return PydanticCustomError("unsupported_parameter", "{message}", context)
