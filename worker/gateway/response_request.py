"""From the body of `POST /v1/responses` to the fields of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.engine.contract.reasoning import EFFORTS

from .api_errors import invalid
from .completion_request import (
    check_one_output,
    read_flag,
    read_service_tier,
    read_stream_options,
)
from .response_input import read_input
from .spec.body import unsupported
from .spec.response_fields import INCLUDE_LOGPROBS, RESPONSE, WINDOWS_S


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """How the caller wants the response; not part of the job."""

    background: bool
    stream: bool
    #: Whether it can be fetched later.
    store: bool
    cancel_on_disconnect: bool
    previous_response_id: str | None
    #: Whether the first message is the instructions.
    has_instructions: bool


def read_response(body: Mapping[str, Any]) -> tuple[dict[str, Any], ResponseOptions]:
    """Return the fields of the job in a body, and the options of the response.

    Raises:
        ApiError: a field is wrong, or not supported by this version.
    """
    fields = RESPONSE.read(body)
    previous = fields.pop("previous_response_id", None)
    if not isinstance(previous, str | None):
        raise invalid("previous_response_id must be an id", "previous_response_id")
    instructions = fields.pop("instructions", None)
    options = ResponseOptions(
        background=read_flag(fields, "background"),
        stream=read_flag(fields, "stream"),
        store=fields.get("store") is None or read_flag(dict(fields), "store"),
        cancel_on_disconnect=read_flag(fields, "cancel_on_disconnect"),
        previous_response_id=previous,
        has_instructions=instructions is not None,
    )
    fields.pop("store", None)
    read_stream_options(fields)
    if options.background and not options.store:
        raise invalid("a background response must be stored: leave store out", "store")
    messages = read_input(fields.pop("input", None))
    if instructions is not None:
        if not isinstance(instructions, str):
            raise invalid("instructions must be a text", "instructions")
        messages.insert(0, {"role": "system", "content": instructions})
    fields["messages"] = messages
    read_service_tier(fields)
    _read_background_options(fields, options)
    _read_logprobs(fields)
    _read_text(fields)
    _read_tools(fields)
    _read_reasoning(fields)
    check_one_output(fields, "response")
    return fields, options


def _read_background_options(fields: dict[str, Any], options: ResponseOptions) -> None:
    given = fields.pop("background_options", None)
    if given is None:
        return
    if not isinstance(given, dict) or not options.background:
        raise invalid(
            "background_options must be an object of a background response", "background_options"
        )
    if unknown := {name for name in given if given[name] is not None} - {"completion_window"}:
        raise unsupported(f"background_options.{min(unknown)}")
    window = given.get("completion_window")
    if window is None:
        return
    name = "background_options.completion_window"
    if not isinstance(window, str) or window not in WINDOWS_S:
        raise invalid(f"{name} must be one of {', '.join(WINDOWS_S)}", name)
    if (limit_s := WINDOWS_S[window]) is not None:
        fields.setdefault("priority", "low")
        fields["ttl_s"] = min(limit_s, fields.get("ttl_s") or limit_s)


def _read_logprobs(fields: dict[str, Any]) -> None:
    include, top = fields.pop("include", None) or [], fields.pop("top_logprobs", None)
    if not isinstance(include, list):
        raise invalid("include must be a list", "include")
    for name in include:
        if name != INCLUDE_LOGPROBS:
            raise unsupported(f"include of {str(name)[:60]!r}", "include")
    if include or top:
        if "logprobs" in fields:
            raise invalid("logprobs is given besides top_logprobs or include: give one", "logprobs")
        fields["logprobs"] = 0 if top is None else top


def _read_text(fields: dict[str, Any]) -> None:
    """Replace `text.format` by the `response_format` of a chat."""
    text = fields.pop("text", None)
    if text is None:
        return
    if not isinstance(text, dict):
        raise invalid("text must be an object", "text")
    if unknown := text.keys() - {"format", "verbosity"}:
        raise invalid(f"text.{min(unknown)[:60]} is not a field", f"text.{min(unknown)[:60]}")
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity")
    form = text.get("format")
    if form is None:
        return
    if not isinstance(form, dict):
        raise invalid("text.format must be an object", "text.format")
    if "response_format" in fields:
        raise invalid("text.format and response_format are both given: give one", "text.format")
    if form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        form = {"type": "json_schema", "json_schema": schema}
    fields["response_format"] = form


def _read_reasoning(fields: dict[str, Any]) -> None:
    """Replace `reasoning.effort` by the `reasoning_effort` of a job."""
    reasoning = fields.pop("reasoning", None)
    if reasoning is None:
        return
    if not isinstance(reasoning, dict):
        raise invalid("reasoning must be an object", "reasoning")
    given = {name: value for name, value in reasoning.items() if value is not None}
    if unknown := given.keys() - {"effort", "summary"}:
        raise unsupported(f"reasoning.{min(unknown)[:60]}")
    # The thoughts themselves are in the response, so nothing is summarized.
    if given.get("summary") not in (None, "auto"):
        raise unsupported("reasoning.summary")
    effort = given.get("effort")
    if effort is None:
        return
    if effort not in EFFORTS:
        name = "reasoning.effort"
        raise invalid(f"{name} must be one of {', '.join(EFFORTS)}", name)
    if "reasoning_effort" in fields:
        raise invalid("reasoning.effort and reasoning_effort are both given: give one", "reasoning")
    fields["reasoning_effort"] = effort


def _read_tools(fields: dict[str, Any]) -> None:
    """Nest functions, which this API writes flat."""
    tools = fields.get("tools")
    if isinstance(tools, list):
        fields["tools"] = [_tool(index, tool) for index, tool in enumerate(tools)]
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise unsupported(
                f"tool_choice of type {str(choice.get('type'))[:60]!r}", "tool_choice"
            )
        named = {name: value for name, value in choice.items() if name != "type"}
        fields["tool_choice"] = {"type": "function", "function": named}


def _tool(index: int, tool: Any) -> Any:
    if not isinstance(tool, dict):
        raise invalid(f"tools.{index} must be an object", f"tools.{index}")
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:60]
        raise unsupported(f"tools.{index} of type {kind!r}", f"tools.{index}")
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": function}
