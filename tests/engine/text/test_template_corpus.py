"""Prompts equal those of transformers for the styles of many families, or are refused by name."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from batchmill.engine import Chat, RequestError
from batchmill.engine.text.chat_template import render_chat

from .template_corpus import (
    CONVERSATIONS,
    HOSTILE,
    TEMPLATES,
    TOOL,
    TOOL_CONVERSATIONS,
    TOOL_TEMPLATES,
)

PLAIN_PAIRS = list(itertools.product({**TEMPLATES, **TOOL_TEMPLATES}, CONVERSATIONS))
TOOL_PAIRS = list(itertools.product(TOOL_TEMPLATES, TOOL_CONVERSATIONS))


def a_tokenizer(template: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def rendered(template: str, messages: list[dict[str, Any]], tools: list[Any]) -> str | RequestError:
    try:
        return render_chat(a_tokenizer(template), Chat(messages=messages, tools=tools), "tiny")
    except RequestError as refusal:
        return refusal


def as_template_reads(message: dict[str, Any], shape: str) -> dict[str, Any]:
    """Return a message as Hugging Face's users give it to a template: no JSON in calls."""
    plain = dict(message)
    content = plain["content"]
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)  # as docs/chat.md says
    if shape == "parts" and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    plain["content"] = "" if content is None and shape == "empty" else content
    if "tool_calls" in plain:
        plain["tool_calls"] = [
            {
                **c,
                "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])},
            }
            for c in plain["tool_calls"]
        ]
    return plain


def with_decoded_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def prompts_of_transformers(
    template: str, messages: list[dict[str, Any]], tools: list[Any]
) -> list[str]:
    """Return what transformers makes of the conversation, with contents as text and as parts."""
    prompts = []
    for shape, role in itertools.product(("null", "empty", "parts"), ("developer", "system")):
        given = [as_template_reads(message, shape) for message in messages]
        given = [{**m, "role": role} if m["role"] == "developer" else m for m in given]
        try:
            prompt = a_tokenizer(template).apply_chat_template(
                given, tools=tools or None, add_generation_prompt=True, tokenize=False
            )
        except Exception:  # a template may raise anything
            continue
        prompts.append(str(prompt))
    return prompts


def marks(messages: list[dict[str, Any]]) -> set[str]:
    """Return the numbers in the contents, which must all be in the prompt."""
    return set(re.findall(r"70\d\d", json.dumps([message["content"] for message in messages])))


def check(template: str, messages: list[dict[str, Any]], tools: list[Any]) -> bool:
    """Check a rendering; return whether there is one."""
    prompt = rendered(template, messages, tools)
    if isinstance(prompt, RequestError):
        assert prompt.code in ("unsupported_parameter", "invalid_request"), prompt
        assert "template" in str(prompt)
        return False
    assert prompt in prompts_of_transformers(template, messages, tools)
    lost = marks(messages) - set(re.findall(r"70\d\d", prompt))
    # A thought of an earlier turn is left out on purpose, with its message in the prompt.
    assert lost <= {"7050"}
    assert "'type': 'text'" not in prompt
    return True


@pytest.mark.parametrize(("name", "conversation"), PLAIN_PAIRS)
def test_a_conversation_is_rendered_as_by_transformers_or_refused(
    name: str, conversation: str
) -> None:
    template = {**TEMPLATES, **TOOL_TEMPLATES}[name]
    is_rendered = check(template, CONVERSATIONS[conversation], [])
    if conversation in ("question", "turns", "parts", "special tokens", "blank"):
        assert is_rendered  # every family can do this


@pytest.mark.parametrize(("name", "conversation"), TOOL_PAIRS)
def test_tools_are_rendered_as_by_transformers_or_refused(name: str, conversation: str) -> None:
    is_rendered = check(TOOL_TEMPLATES[name], TOOL_CONVERSATIONS[conversation], [TOOL])
    if conversation == "question":
        assert is_rendered


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("conversation", ["turns", "thoughts"])
def test_a_hostile_template_is_refused_in_bounded_time(name: str, conversation: str) -> None:
    refusal = rendered(HOSTILE[name], CONVERSATIONS[conversation], [])
    assert isinstance(refusal, RequestError)
    assert refusal.code in ("unsupported_parameter", "invalid_request", "chat_too_complex")
    assert "7041" not in str(refusal)
