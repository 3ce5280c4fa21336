"""A chat as a prompt: messages, tools and documents in OpenAI's shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchmill.engine.contract import chat as contract
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.grammar import check_parameters
from batchmill.engine.contract.media import MEDIA_KINDS, media_kinds
from batchmill.engine.contract.reasoning import check_effort
from batchmill.engine.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A chat, which the model's template turns into a prompt.

    Raises:
        RequestError: `invalid_request`, or `unsupported_parameter` for content that is not text.
    """

    #: OpenAI's messages: `role`, `content` (text, or parts of type text, image or audio),
    #: `tool_calls`, `tool_call_id` and `name`. A part of type image or audio is a placeholder of
    #: one of the request's media.
    messages: Sequence[Mapping[str, Any]]
    #: OpenAI's function tools: `{"type": "function", "function": {"name", "parameters", …}}`.
    tools: Sequence[Mapping[str, Any]] | None = ()
    #: `auto`: the model may call; `required`: it must; `none`: it does not see the tools; or
    #: `{"type": "function", "function": {"name": …}}`: it must call this one, once.
    tool_choice: str | Mapping[str, Any] | None = None
    #: Whether there may be several calls; false ends generation with the first.
    parallel_tool_calls: bool | None = None
    #: Documents to answer from: mappings of `title` and `text`.
    documents: Sequence[Mapping[str, str]] | None = ()
    #: Further variables of the model's template, such as `enable_thinking`.
    chat_template_kwargs: Mapping[str, Any] | None = field(default_factory=dict)
    #: How much the model thinks: one of `EFFORTS`; the template's own variable if it has one, and
    #: else a budget of tokens. None leaves it to the model.
    reasoning_effort: str | None = None
    #: Whether the prompt ends with the beginning of an assistant message; None means yes, unless
    #: the last message is continued.
    add_generation_prompt: bool | None = None
    #: Continue the last message, which must be the assistant's.
    continue_final_message: bool | None = False
    #: Tokenize the control tokens that a content spells out as plain text, so that it cannot end
    #: its own message.
    control_tokens_as_text: bool = False

    def __post_init__(self) -> None:
        _check_messages(self.messages)
        _check_tools(self.tools or ())
        _check_documents(self.documents or ())
        _check_template_kwargs(self.chat_template_kwargs or {})
        self._check_tool_choice()
        self._check_continuation()
        self._check_effort()

    @property
    def media_kinds(self) -> list[str]:
        """Kinds of the media that it needs, in the order of their placeholders."""
        return media_kinds(self.messages)

    @property
    def shown_tools(self) -> list[Mapping[str, Any]]:
        """Tools that the model sees."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def callable_names(self) -> frozenset[str]:
        """Names of the functions that the output may call."""
        if isinstance(self.tool_choice, Mapping):
            return frozenset({self.tool_choice["function"]["name"]})
        return frozenset(tool["function"]["name"] for tool in self.shown_tools)

    @property
    def callable_functions(self) -> Mapping[str, Any]:
        """The schema of the arguments of each function that the output may call."""
        names = self.callable_names
        functions = [tool["function"] for tool in self.shown_tools]
        return {each["name"]: each.get("parameters") for each in functions if each["name"] in names}

    @property
    def must_call(self) -> bool:
        """Whether the output must be calls and nothing else."""
        return contract.is_call_demanded(self.tool_choice)

    @property
    def is_single_call(self) -> bool:
        """Whether the output ends with its first call."""
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, Mapping)

    def _check_tool_choice(self) -> None:
        try:
            contract.check_tool_choice(
                self.tool_choice, [tool["function"] for tool in self.tools or ()]
            )
        except ContractError as refusal:
            raise RequestError.of(refusal) from None

    def _check_effort(self) -> None:
        try:
            check_effort(self.reasoning_effort, self.chat_template_kwargs or {})
        except ContractError as refusal:
            raise RequestError.of(refusal) from None

    def _check_continuation(self) -> None:
        if not self.continue_final_message:
            return
        last = self.messages[-1]
        has_text = bool(text_of(last.get("content"))) and not last.get("tool_calls")
        try:
            contract.check_continuation(
                ends_with_assistant_text=has_text and last["role"] == "assistant",
                add_generation_prompt=bool(self.add_generation_prompt),
            )
        except ContractError as refusal:
            raise RequestError.of(refusal) from None


def text_of(content: Any) -> str | None:
    """Return the text of a message's content, parts joined by line ends as in vLLM, or None.

    Parts that stand for media have no text.

    Raises:
        RequestError: `unsupported_parameter` for a part of another type.
    """
    if content is None or isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, Sequence) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in MEDIA_KINDS:
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                "unsupported_parameter",
                f"a message has a part of type {str(kind)[:40]!r}: use parts of type text, image "
                "or audio",
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise _invalid("messages must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in contract.ROLES:
            raise _invalid(f"messages[{index}] has no role: use one of {', '.join(contract.ROLES)}")
        if text_of(message.get("content")) is None and not message.get("tool_calls"):
            raise _invalid(f"messages[{index}] has neither content nor tool_calls")
        _check_list(f"messages[{index}].tool_calls", message.get("tool_calls") or ())
        for call in message.get("tool_calls") or ():
            decoded_call(call, index)


def decoded_call(call: Any, index: int) -> dict[str, Any]:
    """Return a call of an earlier message as templates need it: with its arguments as an object.

    Raises:
        RequestError: the call is malformed.
    """
    try:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, Mapping):
            raise TypeError
        # JSON can escape lone surrogates, which UTF-8, and so a prompt, cannot encode.
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
        return {**call, "function": {**function, "arguments": arguments}}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _invalid(
            f"messages[{index}].tool_calls has a malformed call: use id, type and function, with a "
            "name and with arguments that are a JSON object"
        ) from None


def _check_tools(tools: Any) -> None:
    _check_list("tools", tools)
    names = set()
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function":
            raise _invalid(f"tools[{index}] must be a function: use type function, with a function")
        name = function.get("name")
        is_name = isinstance(name, str) and re.fullmatch(contract.FUNCTION_NAME, name)
        if not is_name or name in names:
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
        raise _invalid(f"{field} must be a JSON schema: use an object")
    try:
        check_parameters(field, parameters)
    except ContractError as refusal:
        raise _invalid(refusal.message) from None


def _check_list(field: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _invalid(f"{field} must be a list")


def _check_documents(documents: Any) -> None:
    _check_list("documents", documents)
    for index, document in enumerate(documents):
        if (
            not isinstance(document, Mapping)
            or not isinstance(document.get("text"), str)
            or not all(isinstance(value, str) for value in document.values())
        ):
            raise _invalid(f"documents[{index}] must be an object with title and text")


def _check_template_kwargs(kwargs: Any) -> None:
    if not isinstance(kwargs, Mapping):
        raise _invalid("chat_template_kwargs must be an object")
    for name, value in kwargs.items():
        if problem := contract.template_kwarg_problem(str(name), value):
            raise _invalid(f"chat_template_kwargs {problem}")


def _invalid(message: str) -> RequestError:
    return RequestError("invalid_request", message)
