"""The input of `/v1/responses` as messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from batchmill.engine.contract.media import MEDIA_TYPES

from .api_errors import ApiError, invalid

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text")
_PART_FIELDS = frozenset({"type", "text", "annotations", "logprobs"})
#: Fields that OpenAI's own output items have, and that say nothing about the chat.
_NOTES = frozenset({"id", "status", "phase"})


def read_input(given: Any) -> list[dict[str, Any]]:
    """Return the messages of a text or of a list of items.

    Raises:
        ApiError: an item is wrong, or of a kind that this version does not have.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input must be a text or a list of items", "input")
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        where = f"input.{index}"
        if not isinstance(item, dict):
            raise invalid(f"{where} must be an object", where)
        match item.get("type", "message"):
            case "message":
                messages.append(_message(item, where))
            case "function_call":
                _add_call(messages, item, where)
            case "function_call_output":
                messages.append(_call_output(item, where))
            case "reasoning":
                pass  # models think again in each turn
            case kind:
                raise _unsupported(f"{where} is of type {str(kind)[:60]!r}", where)
    return messages


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    _refuse_unknown(item, {"type", "role", "content"}, where)
    if item.get("role") not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    return {"role": item["role"], "content": _content(item.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Return the text of a content, or its parts if any of them is a picture or a sound."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where} must be a text or a list of parts", where)
    parts = [_part(part, f"{where}.{index}") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    """Return a part as a chat has it; `parse_job` checks those with pictures and sounds."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in MEDIA_TYPES:
        return {name: value for name, value in part.items() if name not in _NOTES}
    if kind not in _TEXT_PARTS:
        raise _unsupported(f"{where} is of type {str(kind)[:60]!r}", where)
    _refuse_unknown(part, _PART_FIELDS, where)
    if not isinstance(part.get("text"), str):
        raise invalid(f"{where}.text must be a text", f"{where}.text")
    return {"type": "text", "text": part["text"]}


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    """Add a call to the assistant's message before it, or as a message of its own."""
    _refuse_unknown(item, {"type", "call_id", "name", "arguments"}, where)
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise invalid(f"{where}.{name} must be a text", f"{where}.{name}")
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _call_output(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    _refuse_unknown(item, {"type", "call_id", "output"}, where)
    if not isinstance(item.get("call_id"), str):
        raise invalid(f"{where}.call_id must be a text", f"{where}.call_id")
    output = item.get("output")
    text = output if isinstance(output, str) else _content(output, f"{where}.output")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": text}


def _refuse_unknown(item: Mapping[str, Any], known: Set[str], where: str) -> None:
    if unknown := {name for name in item if item[name] is not None} - known - _NOTES:
        name = f"{where}.{min(unknown)[:60]}"
        raise invalid(f"{name} is not supported by this version", name, "unsupported_parameter")


def earlier_messages(document: bytes, message: Mapping[str, Any], *, skips: int) -> list[Any]:
    """Return the messages of an earlier response and its answer, for a response that follows it.

    Args:
        document: the earlier job.
        message: its answer.
        skips: messages at the start that are not passed on: its instructions.
    """
    messages: list[Any] = json.loads(document)["messages"][skips:]
    return [*messages, dict(message)]


def _unsupported(what: str, param: str) -> ApiError:
    return invalid(
        f"{what}: this version takes text, pictures and sounds",
        param,
        code="unsupported_parameter",
    )
