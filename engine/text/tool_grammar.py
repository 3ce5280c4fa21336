"""A grammar for outputs that have to be calls: the family's spelling around each tool's schema."""

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

#: The token id of a text that is a special token, which a model writes in one piece; else None.
SpecialTokenId = Callable[[str], int | None]


class _Spelling(NamedTuple):
    """What stands around the names and the arguments of calls."""

    opening: str
    before_name: str
    before_arguments: str
    after_arguments: str
    between: str
    closing: str


_SPELLINGS: Final = {
    "hermes": _Spelling(
        "", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", ""
    ),
    "llama3_json": _Spelling("", '{"name": "', '", "parameters": ', "}", "; ", ""),
    "mistral": _Spelling("[TOOL_CALLS][", '{"name": "', '", "arguments": ', "}", ", ", "]"),
}
#: Mistral's newer one, of models whose template has `[ARGS]`.
_MISTRAL_ARGS: Final = _Spelling("", "[TOOL_CALLS]", "[ARGS]", "", "", "")


def tool_grammar(name: str, chat: Chat, template: str, special_token_id: SpecialTokenId) -> str:
    """What the output of a chat that must call follows, as llguidance spells it.

    Args:
        name: The format's.
        chat: With the tools that may be called.
        template: The model's, which tells the two spellings of Mistral apart.
        special_token_id: Of the model's vocabulary.

    Raises:
        RequestError: a schema cannot be enforced.
    """
    spelling = _MISTRAL_ARGS if name == "mistral" and "[ARGS]" in template else _SPELLINGS[name]
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
        calls += ["(", *terms(spelling.between), "call", ")*"]
    rules = [
        " ".join(["start:", *terms(spelling.opening), *calls, *terms(spelling.closing)]),
        "call: " + " | ".join(f"call_{index}" for index in range(len(functions))),
    ]
    for index, function in enumerate(functions):
        before = terms(spelling.before_name + function["name"] + spelling.before_arguments)
        after = terms(spelling.after_arguments)
        rules.append(" ".join([f"call_{index}:", *before, f"arguments_{index}", *after]))
        rules.append(f"arguments_{index}: %json {_arguments_rule(function)}")
    # Here, because an engine without tools or structure runs where llguidance is not installed.
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
