"""The grammar of an output that must be calls: a format's markup around each tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from batchmill.engine.contract.chat import arguments_rule
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.errors import RequestError

from .chat import Chat
from .tool_calls import FORMATS

#: Returns the token id of a text that is a special token, which a model writes as one; else None.
SpecialTokenId = Callable[[str], int | None]


class _Markup(NamedTuple):
    """Text around the names and the arguments of calls."""

    opening: str
    before_name: str
    before_arguments: str
    after_arguments: str
    between: str
    closing: str


_MARKUPS: Final = {
    "hermes": _Markup(
        "", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", ""
    ),
    "llama3_json": _Markup("", '{"name": "', '", "parameters": ', "}", "; ", ""),
    "mistral": _Markup("[TOOL_CALLS][", '{"name": "', '", "arguments": ', "}", ", ", "]"),
}
#: Mistral's newer format, of models whose template has `[ARGS]`.
_MISTRAL_ARGS: Final = _Markup("", "[TOOL_CALLS]", "[ARGS]", "", "", "")


def tool_grammar(name: str, chat: Chat, template: str, special_token_id: SpecialTokenId) -> str:
    """Return the grammar of a chat's output that must be calls, in llguidance's format.

    Args:
        name: Name of the format of calls.
        chat: The chat, with the tools that may be called.
        template: The model's template, which decides between Mistral's two formats.
        special_token_id: Lookup in the model's vocabulary.

    Raises:
        RequestError: a schema cannot be enforced, or `unsupported_parameter` if no grammar is known
            for the format.
    """
    if name not in _MARKUPS:
        raise RequestError(
            "unsupported_parameter",
            f"tool_choice: calls in the format {name} cannot be demanded: use auto or none",
        )
    markup = _MISTRAL_ARGS if name == "mistral" and "[ARGS]" in template else _MARKUPS[name]
    markers = FORMATS[name].markers
    functions = [
        tool["function"]
        for tool in chat.shown_tools
        if tool["function"]["name"] in chat.callable_names
    ]

    def terms(text: str) -> list[str]:
        pieces = re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
        return [_term(piece, special_token_id) for piece in pieces if piece]

    calls = ["call"]
    if not chat.is_single_call:
        calls += ["(", *terms(markup.between), "call", ")*"]
    rules = [
        " ".join(["start:", *terms(markup.opening), *calls, *terms(markup.closing)]),
        "call: " + " | ".join(f"call_{index}" for index in range(len(functions))),
    ]
    for index, function in enumerate(functions):
        before = terms(markup.before_name + function["name"] + markup.before_arguments)
        after = terms(markup.after_arguments)
        rules.append(" ".join([f"call_{index}:", *before, f"arguments_{index}", *after]))
        rules.append(f"arguments_{index}: %json {_arguments_rule(function)}")
    # Imported at first use: an engine without tools or structures needs no llguidance.
    from llguidance import LLMatcher

    grammar: str = LLMatcher.grammar_from_lark("\n".join(rules))
    return grammar


def _term(text: str, special_token_id: SpecialTokenId) -> str:
    token_id = special_token_id(text)
    return json.dumps(text, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"


def _arguments_rule(function: Mapping[str, Any]) -> str:
    try:
        return arguments_rule(function)
    except ContractError as refusal:
        raise RequestError.of(refusal) from None
