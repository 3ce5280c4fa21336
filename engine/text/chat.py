"""A conversation as a prompt: messages, tools and documents in OpenAI's shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from batchmill.engine.errors import RequestError
from batchmill.engine.grammar import GrammarRefused, check_parameters, schema_for_rule

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
#: Names that a template is given by other means, or that would steer the rendering itself.
RESERVED_TEMPLATE_KWARGS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What the model's chat template turns into a prompt; an engine takes it in a prompt's place.

    Raises:
        RequestError: `invalid_request`, or `unsupported_parameter` for content that is not text.
    """

    #: OpenAI's messages: `role`, `content` (text, or parts of type text), `tool_calls`,
    #: `tool_call_id` and `name`.
    messages: Sequence[Mapping[str, Any]]
    #: OpenAI's function tools: `{"type": "function", "function": {"name", "parameters", …}}`.
    tools: Sequence[Mapping[str, Any]] | None = ()
    #: `auto`: the model may call; `required`: it must; `none`: it is not shown the tools; or
    #: `{"type": "function", "function": {"name": …}}`: it must call this one, once.
    tool_choice: str | Mapping[str, Any] | None = None
    #: Whether there may be several calls; without, generation ends with the first.
    parallel_tool_calls: bool | None = None
    #: Documents to answer from: mappings of `title` and `text`.
    documents: Sequence[Mapping[str, str]] | None = ()
    #: What else the model's template understands, such as `enable_thinking`.
    chat_template_kwargs: Mapping[str, Any] | None = field(default_factory=dict)
    #: Whether the prompt ends where an answer begins; None: unless the last message is continued.
    add_generation_prompt: bool | None = None
    #: Go on with the last message, which is the assistant's, instead of answering it.
    continue_final_message: bool | None = False

    def __post_init__(self) -> None:
        _check_messages(self.messages)
        _check_tools(self.tools or ())
        _check_documents(self.documents or ())
        _check_template_kwargs(self.chat_template_kwargs or {})
        self._check_tool_choice()
        self._check_continuation()

    @property
    def shown_tools(self) -> list[Mapping[str, Any]]:
        """The tools that the model is to know of."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def callable_names(self) -> frozenset[str]:
        """Functions that the output may call."""
        if isinstance(self.tool_choice, Mapping):
            return frozenset({self.tool_choice["function"]["name"]})
        return frozenset(tool["function"]["name"] for tool in self.shown_tools)

    @property
    def must_call(self) -> bool:
        """Whether the output has to be calls and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, Mapping)

    @property
    def is_single_call(self) -> bool:
        """Whether the output ends with its first call."""
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, Mapping)

    def _check_tool_choice(self) -> None:
        choice = self.tool_choice
        if choice not in (None, "none") and not self.tools:
            raise _invalid("tool_choice is given without tools: give tools, or leave it out")
        if isinstance(choice, Mapping):
            function = choice.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            offered = [tool["function"]["name"] for tool in self.tools or ()]
            if choice.get("type") != "function" or name not in offered:
                raise _invalid("tool_choice names no function of tools: use one of their names")
        elif choice not in (None, "auto", "none", "required"):
            raise _invalid(
                "tool_choice is none of auto, none, required and "
                '{"type": "function", "function": {"name": …}}'
            )
        for tool in self.tools or ():
            function = tool["function"]
            if self.must_call and function["name"] in self.callable_names:
                parameters_rule(function)
            elif function.get("strict") and choice != "none":
                raise RequestError(
                    "unsupported_parameter",
                    "strict holds only where a call is certain: set tool_choice to required or to "
                    "a function, or leave strict out",
                )

    def _check_continuation(self) -> None:
        if not self.continue_final_message:
            return
        last = self.messages[-1]
        if last["role"] != "assistant" or last.get("tool_calls") or not text_of(last["content"]):
            raise _invalid(
                "continue_final_message goes on with text of the assistant, and the last message "
                "is none: add it, or leave continue_final_message out"
            )
        if self.add_generation_prompt:
            raise _invalid(
                "add_generation_prompt begins a new message and continue_final_message goes on "
                "with the last: give one of them"
            )


def parameters_rule(function: Mapping[str, Any]) -> str:
    """The schema of a function's arguments, for a Lark rule.

    Raises:
        RequestError: it cannot be enforced.
    """
    parameters = function.get("parameters") or {"additionalProperties": False}
    try:
        return schema_for_rule(
            f"the parameters of {function['name']}", {**parameters, "type": "object"}
        )
    except GrammarRefused as refusal:
        raise RequestError(refusal.code, refusal.message) from None


def text_of(content: Any) -> str | None:
    """The text of a message's content, parts joined by line ends as in vLLM; None for none.

    Raises:
        RequestError: `unsupported_parameter` for a part that is not text.
    """
    if content is None or isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, Sequence) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                "unsupported_parameter",
                f"a message has a part of type {str(kind)[:40]!r}: this version takes text only",
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise _invalid("messages is no list of messages, or is empty: give at least one")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise _invalid(f"messages[{index}] has no role: use one of {', '.join(ROLES)}")
        if text_of(message.get("content")) is None and not message.get("tool_calls"):
            raise _invalid(f"messages[{index}] has neither content nor tool_calls")
        for call in message.get("tool_calls") or ():
            decoded_call(call, index)


def decoded_call(call: Any, index: int) -> dict[str, Any]:
    """A call of an earlier message as templates want it: its arguments are no text, but an object.

    Raises:
        RequestError: it is no call.
    """
    try:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, Mapping):
            raise TypeError
        # Escapes of JSON can spell lone surrogates, which UTF-8, and so a prompt, cannot hold.
        json.dumps(arguments, ensure_ascii=False).encode()
        return {**call, "function": {**function, "arguments": arguments}}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _invalid(
            f"messages[{index}].tool_calls holds what is no call: use id, type and function, with "
            "a name and arguments that are a JSON object"
        ) from None


def _check_tools(tools: Any) -> None:
    names = set()
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function":
            raise _invalid(f"tools[{index}] is no function: use type function, with a function")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in names:
            raise _invalid(
                f"tools[{index}].function.name is given twice, or is not 1 to 64 letters, digits, "
                "_ and -"
            )
        names.add(name)
        _check_parameters(f"tools[{index}].function.parameters", function.get("parameters"))


def _check_parameters(field: str, parameters: Any) -> None:
    if parameters is None:
        return
    if not isinstance(parameters, Mapping):
        raise _invalid(f"{field} is no JSON schema: use an object")
    try:
        check_parameters(field, parameters)
    except GrammarRefused as refusal:
        raise _invalid(refusal.message) from None


def _check_documents(documents: Any) -> None:
    for index, document in enumerate(documents):
        if (
            not isinstance(document, Mapping)
            or not isinstance(document.get("text"), str)
            or not all(isinstance(value, str) for value in document.values())
        ):
            raise _invalid(f"documents[{index}] is no mapping of title and text")


def _check_template_kwargs(kwargs: Any) -> None:
    for name, value in kwargs.items():
        if name in RESERVED_TEMPLATE_KWARGS or not str(name).isidentifier():
            raise _invalid(
                f"chat_template_kwargs holds {str(name)[:40]!r}, which is not for it: leave it out"
            )
        if not isinstance(value, str | int | float | bool | None):
            raise _invalid(f"chat_template_kwargs.{name} is no text, number, true, false or null")


def _invalid(message: str) -> RequestError:
    return RequestError("invalid_request", message)
