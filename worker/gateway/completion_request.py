"""From the body of `/v1/chat/completions` or `/v1/completions` to the fields of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.engine.contract.aliases import names_of
from batchmill.producer.job.line import LineKind

from .api_errors import invalid
from .spec.requests import CHAT, COMPLETION, SERVICE_TIERS

_STREAM_OPTIONS = ("include_usage", "include_obfuscation")


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """How the caller wants the response; not part of the job."""

    stream: bool = False
    #: The stream ends with a chunk of the usage.
    include_usage: bool = False
    #: The job is cancelled if the client goes away.
    cancel_on_disconnect: bool = False


def read_completion(
    kind: LineKind, body: Mapping[str, Any]
) -> tuple[dict[str, Any], CompletionOptions]:
    """Return the fields of the job in a body, and the options of the response.

    Raises:
        ApiError: a field of the gateway is invalid, or the input is missing.
    """
    fields = (CHAT if kind is LineKind.CHAT else COMPLETION).read(body)
    options = CompletionOptions(
        stream=read_flag(fields, "stream"),
        include_usage=read_stream_options(fields),
        cancel_on_disconnect=read_flag(fields, "cancel_on_disconnect"),
    )
    wanted, other = ("messages", "prompt") if kind is LineKind.CHAT else ("prompt", "messages")
    if fields.get(wanted) is None:
        raise invalid(f"{wanted} is missing: it is the input of {kind.value}", wanted)
    if fields.get(other) is not None:
        raise invalid(f"{other} is not a field of {kind.value}", other)
    read_service_tier(fields)
    return fields, options


def read_service_tier(fields: dict[str, Any]) -> None:
    """Replace `service_tier` by the class that it asks for.

    Raises:
        ApiError: it is unknown, or `priority` is given as well.
    """
    tier = fields.pop("service_tier", None)
    if tier is None:
        return
    if not isinstance(tier, str) or tier not in SERVICE_TIERS:
        raise invalid(f"service_tier must be one of {', '.join(SERVICE_TIERS)}", "service_tier")
    if (wanted := SERVICE_TIERS[tier]) is None:
        return
    if fields.setdefault("priority", wanted) != wanted:
        raise invalid("service_tier and priority ask for different classes: give one of them")


def check_one_output(fields: Mapping[str, Any], what: str) -> None:
    """Check that a request of an API whose objects have one output asks for one.

    Args:
        fields: Of the job.
        what: The object, for the error.

    Raises:
        ApiError: it asks for several.
    """
    for name in names_of("n"):
        if fields.get(name) not in (None, 1):
            raise invalid(f"{name} must be 1: a {what} has one output", name)


def read_flag(fields: dict[str, Any], name: str) -> bool:
    """Take a field that is true or false; a missing one is false.

    Raises:
        ApiError: it is something else.
    """
    value = fields.pop(name, None)
    if value not in (None, True, False) or isinstance(value, int) != isinstance(value, bool):
        raise invalid(f"{name} must be true or false", name)
    return bool(value)


def read_stream_options(fields: dict[str, Any]) -> bool:
    """Take the options of a stream, and return whether it ends with the usage.

    Raises:
        ApiError: an option is unknown or not supported.
    """
    options = fields.pop("stream_options", None)
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid("stream_options must be an object", "stream_options")
    if unknown := options.keys() - set(_STREAM_OPTIONS):
        name = f"stream_options.{min(unknown)}"
        raise invalid(f"{name} is not supported: use include_usage", name)
    options = dict(options)
    # Padding against the measuring of texts by their length is made by no gateway here.
    if read_flag(options, "include_obfuscation"):
        raise invalid(
            "stream_options.include_obfuscation is not supported: leave it out",
            "stream_options.include_obfuscation",
            code="unsupported_parameter",
        )
    return read_flag(options, "include_usage")
