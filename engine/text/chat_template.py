"""Rendering of a chat by its model's template, which must not ignore any part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast

from batchmill.engine.contract.media import MEDIA_KINDS, media_kinds
from batchmill.engine.errors import RequestError

from .chat import Chat, decoded_call, text_of
from .lost_content import (
    first_lost_content,
    shows_parts_as_data,
    with_empty_for_null,
    with_parts,
)
from .reasoning_effort import effort_kwargs
from .template_time import MAX_TEMPLATE_CPU_S, Renderer, TemplateTooSlow


def render_chat(tokenizer: PreTrainedTokenizerFast, chat: Chat, model_name: str) -> str:
    """Return the prompt that the tokenizer's own template makes of a chat.

    A template silently ignores what it does not know. So each part that it may ignore is left out
    once: if the prompt stays the same, the part is refused.

    Raises:
        RequestError: `unsupported_parameter` if the template is missing or ignores a part;
            `invalid_request` if it refuses the messages; `chat_too_complex` if it takes too long.
    """
    template = template_of(tokenizer, chat)
    effort = effort_kwargs(chat.reasoning_effort, template, model_name)
    given = {**_inputs(chat, template), **effort}
    _check_kwargs(tokenizer, chat, template, model_name)
    try:
        return _render_whole(Renderer(tokenizer, template), given, model_name)
    except TemplateTooSlow:
        raise RequestError(
            "chat_too_complex",
            f"the chat template of {model_name} takes more than {MAX_TEMPLATE_CPU_S:g} s of CPU "
            f"time for these {len(chat.messages)} messages, the limit: send fewer messages, or "
            "the text as a prompt",
        ) from None


def _render_whole(renderer: Renderer, given: dict[str, Any], model_name: str) -> str:
    """Return the prompt, with every part of the chat in it."""
    given, prompt = _prompt_of(renderer, given)
    for name, remedy, without in _with_a_part_left_out(given):
        if _is_same(renderer, without, prompt):
            raise RequestError(
                "unsupported_parameter",
                f"the chat template of {model_name} ignores {name}: {remedy}, or use a model whose "
                "template knows them",
            )
    return _with_every_content(renderer, given, prompt, model_name)


def _prompt_of(renderer: Renderer, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the variables that the template can render, and the prompt.

    Null contents become empty ones if the template cannot render null.

    Raises:
        RequestError: `invalid_request`: the template refuses the messages.
    """
    filled = with_empty_for_null(given)
    try:
        prompt = renderer.render(given)
    except Exception as error:  # a template is a program, which may raise anything
        if filled is not None:
            return _prompt_of(renderer, filled)
        # A template's own error may quote the messages, so it is not shown.
        raise RequestError(
            "invalid_request",
            f"the model's chat template refuses these messages ({type(error).__name__}): "
            "check their roles, their order and that each has content",
        ) from None
    return given, prompt


def _with_every_content(
    renderer: Renderer, given: dict[str, Any], prompt: str, model_name: str
) -> str:
    """Return a prompt that holds the content of every message.

    Raises:
        RequestError: `unsupported_parameter`: the template leaves one out.
    """
    lost = first_lost_content(renderer.render, given, prompt)
    if lost is None:
        return prompt
    in_parts = with_parts(given)
    try:
        of_parts = renderer.render(in_parts)
        is_lost = first_lost_content(renderer.render, in_parts, of_parts) is not None
        if not is_lost and not shows_parts_as_data(in_parts, of_parts):
            return of_parts
    except Exception:  # as in `_prompt_of`
        pass
    role = given["conversation"][lost]["role"]
    raise RequestError(
        "unsupported_parameter",
        f"the chat template of {model_name} ignores the content of messages.{lost} (role {role}): "
        "move it into another message, or use a model whose template knows it",
    )


def template_of(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> str:
    """Return the template's text; a model may have another one for tools.

    Raises:
        RequestError: `unsupported_parameter`: the model has none.
    """
    try:
        return tokenizer.get_chat_template(None, [dict(tool) for tool in chat.shown_tools] or None)
    except ValueError:
        raise RequestError(
            "unsupported_parameter",
            "messages need a chat template and this model has none: send prompt instead "
            "(`batchmill submit --raw`)",
        ) from None


def _inputs(chat: Chat, template: str) -> dict[str, Any]:
    """Return the variables of the template."""
    continued = bool(chat.continue_final_message)
    starts_answer = chat.add_generation_prompt
    return {
        "conversation": [
            _plain_message(index, message, template) for index, message in enumerate(chat.messages)
        ],
        "tools": [_plain_tool(tool) for tool in chat.shown_tools] or None,
        "documents": [dict(document) for document in chat.documents or ()] or None,
        "add_generation_prompt": not continued if starts_answer is None else starts_answer,
        "continue_final_message": continued,
        **(chat.chat_template_kwargs or {}),
    }


def _plain_message(index: int, message: Mapping[str, Any], template: str) -> dict[str, Any]:
    plain = {**message, "content": _plain_content(message)}
    # OpenAI's newer name for the same role; few templates know it.
    if plain["role"] == "developer" and "developer" not in template:
        plain["role"] = "system"
    calls = plain.pop("tool_calls", None)
    if calls:
        plain["tool_calls"] = [decoded_call(call, index) for call in calls]
    return plain


def _plain_content(message: Mapping[str, Any]) -> str | list[dict[str, Any]] | None:
    """Return the text of a message, or its parts if any of them stands for a medium."""
    if not media_kinds([message]):
        return text_of(message.get("content"))
    return [
        {"type": part["type"]}
        if part["type"] in MEDIA_KINDS
        else {"type": "text", "text": part["text"]}
        for part in message["content"]
    ]


def _plain_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool with parameters: templates read them without checking that they exist."""
    function = dict(tool["function"])
    function["parameters"] = function.get("parameters") or {"type": "object", "properties": {}}
    return {**tool, "function": function}


def _with_a_part_left_out(given: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each part that a template may ignore: name, remedy, and the inputs without it."""
    messages = given["conversation"]
    if given["tools"] is not None:
        yield "tools", "leave them out", {**given, "tools": None}
    if given["documents"] is not None:
        yield "documents", "put them into a message", {**given, "documents": None}
    if any("tool_calls" in message for message in messages):
        without = [{**message, "tool_calls": None} for message in messages]
        yield "tool_calls of messages", "write them as text", {**given, "conversation": without}
    if any(len(message.get("tool_calls") or ()) > 1 for message in messages):
        without = [
            {**message, "tool_calls": message["tool_calls"][:1]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]
        remedy = "put each into a message of its own"
        yield (
            "all but the first of a message's tool_calls",
            remedy,
            {
                **given,
                "conversation": without,
            },
        )
    if any(message["role"] == "tool" for message in messages):
        without = [message for message in messages if message["role"] != "tool"]
        yield "messages of role tool", "write them as text", {**given, "conversation": without}
    if any(message.get("name") and message["role"] != "tool" for message in messages):
        # A tool's name repeats its call's.
        without = [
            message if message["role"] == "tool" else {**message, "name": None}
            for message in messages
        ]
        yield "names of messages", "say who speaks in content", {**given, "conversation": without}


def _check_kwargs(
    tokenizer: PreTrainedTokenizerFast, chat: Chat, template: str, model_name: str
) -> None:
    # Leaving a variable out would prove nothing if its value is the default.
    for name in chat.chat_template_kwargs or {}:
        if name in tokenizer.special_tokens_map:
            raise RequestError(
                "invalid_request",
                f"chat_template_kwargs.{name} names a special token of the model: leave it out",
            )
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise RequestError(
                "unsupported_parameter",
                f"the chat template of {model_name} does not use {name}: leave it out of "
                "chat_template_kwargs",
            )


def _is_same(renderer: Renderer, given: dict[str, Any], prompt: str) -> bool:
    try:
        return renderer.render(given) == prompt
    except Exception:  # a template may raise anything
        return False  # it needs the part
