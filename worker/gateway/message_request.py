"""From the body of Anthropic's `POST /v1/messages` to the fields of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.engine.contract.reasoning import EFFORTS

from .api_errors import invalid
from .completion_request import check_one_output, read_flag, read_service_tier
from .spec.body import unsupported
from .spec.message_fields import MESSAGE

#: Says where to cache; prefixes are cached here without it.
_WITHOUT_EFFECT = "cache_control"
#: The fields of each kind of block that is read. Nothing depends on `is_error`, `caller` or
#: `citations`, which Anthropic's own messages have.
_BLOCK_FIELDS = {
    "text": ("type", "text", "citations", _WITHOUT_EFFECT),
    "image": ("type", "source", _WITHOUT_EFFECT),
    # Models think again in each turn.
    "thinking": ("type", "thinking", "signature", _WITHOUT_EFFECT),
    "redacted_thinking": ("type", "data", _WITHOUT_EFFECT),
    "tool_use": ("type", "id", "name", "input", "caller", _WITHOUT_EFFECT),
    "tool_result": ("type", "tool_use_id", "content", "is_error", _WITHOUT_EFFECT),
}
#: The fields of each kind of source of a picture, that of its content first.
_SOURCE_FIELDS = {"base64": ("data", "media_type"), "url": ("url",)}
_THOUGHTS = ("thinking", "redacted_thinking")
#: How much a model thinks whose thoughts have a budget, if its template takes an effort.
_EFFORT_OF_BUDGET = "medium"
#: The fields of each type of `thinking`. `adaptive` leaves it to the model.
_THINKING_FIELDS = {"enabled": ("budget_tokens",), "disabled": (), "adaptive": ()}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """How the caller wants the response; not part of the job."""

    stream: bool
    cancel_on_disconnect: bool


def read_message_request(body: Mapping[str, Any]) -> tuple[dict[str, Any], MessageOptions]:
    """Return the fields of the job in a body, and the options of the response.

    Raises:
        ApiError: a field is wrong, or not supported by this version.
    """
    fields = MESSAGE.read(body)
    if fields.get("max_tokens") is None:
        raise invalid("max_tokens is missing: it is the most tokens to generate", "max_tokens")
    options = MessageOptions(read_flag(fields, "stream"), read_flag(fields, "cancel_on_disconnect"))
    messages = _messages(fields.get("messages"))
    system = fields.pop("system", None)
    if system is not None:
        messages.insert(0, {"role": "system", "content": _text(system, "system")})
    fields["messages"] = messages
    _read_metadata(fields)
    _read_tools(fields)
    _read_output_config(fields)
    _read_thinking(fields)
    read_service_tier(fields)
    check_one_output(fields, "message")
    return fields, options


def _messages(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise invalid("messages must be a list with at least one message", "messages")
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(given):
        where = f"messages.{index}"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise invalid(f"{where} must have the role user or assistant", where)
        if unknown := message.keys() - {"role", "content"}:
            name = f"{where}.{min(unknown)[:60]}"
            raise invalid(f"{name} is not part of a message", name)
        content, where = message.get("content"), f"{where}.content"
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
        elif message["role"] == "assistant":
            messages.append(_assistant(content, where))
        else:
            messages += _user(content, where)
    return messages


def _user(content: Any, where: str) -> list[dict[str, Any]]:
    """Return the results of tools in a message, and its text, as messages of their own."""
    blocks = _blocks(content, where)
    messages = []
    parts = []
    for place, block in blocks:
        if block["type"] == "tool_result":
            if not isinstance(block.get("tool_use_id"), str):
                raise invalid(f"{place}.tool_use_id must be a text", f"{place}.tool_use_id")
            result = _content(block.get("content") or "", f"{place}.content")
            messages.append(
                {"role": "tool", "tool_call_id": block["tool_use_id"], "content": result}
            )
        else:
            parts.append(_part(block, place))
    if parts or not messages:
        messages.append({"role": "user", "content": _joined(parts)})
    return messages


def _assistant(content: Any, where: str) -> dict[str, Any]:
    texts, calls = [], []
    for place, block in _blocks(content, where):
        if block["type"] in _THOUGHTS:
            continue
        if block["type"] != "tool_use":
            texts.append(_block_text(block, place))
            continue
        if not isinstance(block.get("id"), str) or not isinstance(block.get("name"), str):
            raise invalid(f"{place} must have an id and a name", place)
        if not isinstance(block.get("input"), dict):
            raise invalid(f"{place}.input must be an object", f"{place}.input")
        function = {"name": block["name"], "arguments": json.dumps(block["input"])}
        calls.append({"id": block["id"], "type": "function", "function": function})
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) or None}
    if calls:
        message["tool_calls"] = calls
    else:
        message["content"] = message["content"] or ""
    return message


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Return the text of a content, or its parts if any of them is a picture."""
    if isinstance(content, str):
        return content
    return _joined([_part(block, place) for place, block in _blocks(content, where)])


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return parts of text joined by line ends; parts with pictures as they are."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a block as a part of a chat; `parse_job` checks those with pictures."""
    if block["type"] != "image":
        return {"type": "text", "text": _block_text(block, where)}
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    known = _SOURCE_FIELDS.get(kind) if isinstance(kind, str) else None
    if not isinstance(source, dict) or known is None:
        raise unsupported(f"{where}.source of type {str(kind)[:60]!r}", f"{where}.source")
    if unknown := source.keys() - {*known, "type"}:
        raise unsupported(f"{where}.source.{min(unknown)[:60]}")
    name = known[0]
    if not isinstance(source.get(name), str):
        raise invalid(f"{where}.source.{name} must be a text", f"{where}.source.{name}")
    return {"type": "image", "base64" if name == "data" else "url": source[name]}


def _text(content: Any, where: str) -> str:
    """Return the text of a content: a text, or blocks that are joined by line ends."""
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, place) for place, block in _blocks(content, where))


def _blocks(content: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the blocks of a content, each with its place."""
    if not isinstance(content, list):
        raise invalid(f"{where} must be a text or a list of blocks", where)
    blocks = []
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise invalid(f"{where}.{index} must be a block with a type", f"{where}.{index}")
        known = _BLOCK_FIELDS.get(block["type"])
        unknown = {name for name in block if block[name] is not None} - {*(known or block)}
        if unknown:
            raise unsupported(f"{where}.{index}.{min(unknown)[:60]}")
        blocks.append((f"{where}.{index}", block))
    return blocks


def _block_text(block: Mapping[str, Any], where: str) -> str:
    if block["type"] != "text":
        raise unsupported(f"{where} of type {block['type'][:60]!r}", where)
    if not isinstance(block.get("text"), str):
        raise invalid(f"{where}.text must be a text", f"{where}.text")
    return str(block["text"])


def _read_metadata(fields: dict[str, Any]) -> None:
    """Drop the id of the caller's user: nothing depends on it here."""
    metadata = fields.get("metadata")
    if isinstance(metadata, dict):
        fields["metadata"] = {name: metadata[name] for name in metadata if name != "user_id"}


def _read_tools(fields: dict[str, Any]) -> None:
    tools = fields.get("tools")
    if isinstance(tools, list):
        fields["tools"] = [_tool(index, tool) for index, tool in enumerate(tools)]
    choice = fields.pop("tool_choice", None)
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool" and isinstance(choice.get("name"), str):
        fields["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in _CHOICES:
        fields["tool_choice"] = _CHOICES[kind]
    else:
        raise invalid(
            "tool_choice must have the type auto, any, none, or tool with a name", "tool_choice"
        )
    if read_flag(dict(choice), "disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False


def _tool(index: int, tool: Any) -> dict[str, Any]:
    where = f"tools.{index}"
    if not isinstance(tool, dict):
        raise invalid(f"{where} must be an object", where)
    if tool.get("type") not in (None, "custom"):
        raise unsupported(f"{where} of type {str(tool['type'])[:60]!r}", where)
    known = ("name", "description", "input_schema", "strict")
    if unknown := tool.keys() - {*known, "type", _WITHOUT_EFFECT}:
        raise unsupported(f"{where}.{min(unknown)[:60]}")
    function = {name: tool[name] for name in known if name in tool}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}


def _read_output_config(fields: dict[str, Any]) -> None:
    config = fields.pop("output_config", None)
    if config is None:
        return
    if not isinstance(config, dict):
        raise invalid("output_config must be an object", "output_config")
    if unknown := {name for name in config if config[name] is not None} - {"format", "effort"}:
        raise unsupported(f"output_config.{min(unknown)[:60]}")
    if (effort := config.get("effort")) is not None:
        if effort not in EFFORTS:
            name = "output_config.effort"
            raise invalid(f"{name} must be one of {', '.join(EFFORTS)}", name)
        _set_once(fields, "reasoning_effort", effort, "output_config.effort")
    form = config.get("format")
    if form is None:
        return
    if not isinstance(form, dict) or form.get("type") != "json_schema" or "schema" not in form:
        raise invalid(
            "output_config.format must be of type json_schema, with a schema",
            "output_config.format",
        )
    schema = {"name": "output", "schema": form["schema"]}
    fields["response_format"] = {"type": "json_schema", "json_schema": schema}


def _read_thinking(fields: dict[str, Any]) -> None:
    """Replace `thinking` by an effort, and a budget of tokens for thoughts."""
    thinking = fields.pop("thinking", None)
    if thinking is None:
        return
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in _THINKING_FIELDS:
        raise invalid(f"thinking must have the type {', '.join(_THINKING_FIELDS)}", "thinking")
    known = {"type", *_THINKING_FIELDS[kind]}
    if unknown := {name for name in thinking if thinking[name] is not None} - known:
        raise unsupported(f"thinking.{min(unknown)[:60]}")
    if kind == "disabled":
        fields["reasoning_effort"] = "none"
    elif kind == "enabled":
        budget, most = thinking.get("budget_tokens"), fields["max_tokens"]
        name = "thinking.budget_tokens"
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            raise invalid(f"{name} must be a number of tokens, at least 1", name)
        if isinstance(most, int) and budget >= most:
            raise invalid(f"{name} is {budget}: it must be less than max_tokens ({most})", name)
        _set_once(fields, "thinking_token_budget", budget, name)
        if fields.get("reasoning_effort") is None:
            fields["reasoning_effort"] = _EFFORT_OF_BUDGET


def _set_once(fields: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set a field of the job that a field of this API stands for."""
    if fields.get(name) is not None:
        raise invalid(f"{where} and {name} are both given: give one of them", where)
    fields[name] = value
