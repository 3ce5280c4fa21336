"""How a chat request calls functions: the format of its calls, and the grammar that demands one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batchmill.engine.contract.agreement import check_tools_suit
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.errors import RequestError
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.thinking_budget import ThinkingBudget
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.text.thoughts import (
    THOUGHTS,
    Thoughts,
    end_of_open_thought,
    writes_thoughts,
)
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.engine.text.tool_calls import (
    FORMATS,
    NO_CALLS,
    ToolCallFormat,
    detect_format,
)
from batchmill.engine.text.tool_grammar import tool_grammar
from batchmill.engine.text.tool_reader import ToolCallReader

#: The most tokens of a prompt's last line that may begin a thought: a byte each, and blanks.
_MAX_MARKER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How one chat thinks and calls functions."""

    chat: Chat
    form: ToolCallFormat
    #: The grammar that the output must follow if it has to be calls; None if calls are optional.
    grammar: str | None
    tokenizer: Tokenizer
    #: Whether thoughts are taken out of the text.
    separates_thoughts: bool = False
    #: How many tokens the thoughts may have; None if there is no limit.
    thinking_token_budget: int | None = None
    #: The ends of thoughts by their beginnings.
    thought_markers: Mapping[str, str] = field(default_factory=lambda: THOUGHTS)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader needs to see, and that may be special tokens."""
        reads_thoughts = self.separates_thoughts or self.thinking_token_budget is not None
        thoughts = (*self.thought_markers, *self.thought_markers.values())
        return (*self.form.markers, *(thoughts if reads_thoughts else ()))

    def reader(self, prompt_token_ids: Sequence[int], seed: int) -> ToolCallReader:
        """Return a reader for one sample's output."""
        return ToolCallReader(
            self.form,
            self.chat.callable_functions,
            is_single_call=self.chat.is_single_call,
            prompt_token_ids=prompt_token_ids,
            seed=seed,
            end_of_thought=self._end_of_open_thought(prompt_token_ids),
            thoughts=Thoughts() if self.separates_thoughts else None,
            thought_markers=self.thought_markers,
        )

    def thinking_budget(self, prompt_token_ids: Sequence[int]) -> ThinkingBudget | None:
        """Return the budget of one sample's thoughts; None if they have none."""
        if self.thinking_token_budget is None:
            return None
        return ThinkingBudget(
            self.thinking_token_budget,
            {end: self.tokenizer.encode_plain(end) for end in self.thought_markers.values()},
            end_of_thought=self._end_of_open_thought(prompt_token_ids),
        )

    def _end_of_open_thought(self, prompt_token_ids: Sequence[int]) -> str:
        """Return what ends the thought that the prompt began; "" if it began none."""
        if self.grammar is not None:  # the output is calls and nothing else
            return ""
        last = prompt_token_ids[-_MAX_MARKER_TOKENS:]
        prompt = self.tokenizer.decode(last, skip_special_tokens=False)
        return end_of_open_thought(prompt, self.thought_markers)


def plan_tool_use(
    chat: Chat,
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    *,
    tool_call_parser: str,
    separates_thoughts: bool,
    thinking_token_budget: int | None = None,
    model_name: str,
) -> ToolUse | None:
    """Find out how the output of a chat calls functions, and whether it has thoughts.

    Args:
        chat: The conversation.
        tokenizer: Has the chat template.
        detokenizer: Knows the special tokens.
        tool_call_parser: The name of a call format, or "auto" to detect it from the template.
        separates_thoughts: Whether thoughts, if the template has their markup, are not text.
        thinking_token_budget: How many tokens the thoughts may have; None if there is no limit.
        model_name: For the error message.

    Returns:
        None if the chat offers no functions and its model writes no thoughts.

    Raises:
        RequestError: `unsupported_parameter` if the model's call format is not known, or its
            thoughts have a budget and no known markup.
    """
    template, response = tokenizer.chat_template(chat), tokenizer.response_format
    markers: Mapping[str, str] = THOUGHTS if writes_thoughts(template) else {}
    if response is not None and response.thoughts:
        markers = response.thoughts
    if thinking_token_budget is not None and not markers:
        raise RequestError(
            "unsupported_parameter",
            f"thinking_token_budget: the chat template of {model_name} does not have the markup of "
            f"thoughts ({', '.join(THOUGHTS)}): leave it out",
        )
    # An output that must be calls is calls and nothing else.
    separates_thoughts = separates_thoughts and not chat.must_call and bool(markers)
    form, grammar = NO_CALLS, None
    if chat.shown_tools:
        form, grammar = _call_format(chat, tokenizer, detokenizer, tool_call_parser, model_name)
    elif not separates_thoughts and thinking_token_budget is None:
        return None
    return ToolUse(
        chat, form, grammar, tokenizer, separates_thoughts, thinking_token_budget, markers
    )


def _call_format(
    chat: Chat,
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    tool_call_parser: str,
    model_name: str,
) -> tuple[ToolCallFormat, str | None]:
    """Return the format of a chat's calls, and the grammar of an output that has to be calls."""
    template, response = tokenizer.chat_template(chat), tokenizer.response_format
    name = detect_format(template) if tool_call_parser == "auto" else tool_call_parser
    own = response.calls if response is not None and tool_call_parser == "auto" else None
    if own is not None and not (chat.must_call and name is not None):
        # A grammar needs one of our own formats.
        return _without_demand(chat, own, model_name), None
    if name is None:
        raise RequestError(
            "unsupported_parameter",
            f"tools: the chat template of {model_name} does not show how it formats calls: the "
            f"operator can set tool_call_parser to {', '.join(FORMATS)}; or set tool_choice to "
            "none",
        )
    grammar = None
    if chat.must_call:
        grammar = tool_grammar(name, chat, template, detokenizer.special_token_id)
    return FORMATS[name], grammar


def _without_demand(chat: Chat, form: ToolCallFormat, model_name: str) -> ToolCallFormat:
    if chat.must_call:
        raise RequestError(
            "unsupported_parameter",
            f"tool_choice: the calls of {model_name} are read by its response template, and no "
            "grammar for them is known: set tool_choice to auto",
        )
    return form


def check_agreement(chat: Chat, params: SamplingParams) -> None:
    """Refuse params that contradict the tools of a chat.

    Raises:
        RequestError: `invalid_request`.
    """
    if not chat.shown_tools:
        return
    if not params.detokenize:
        raise RequestError(
            "invalid_request", "tools need text, detokenize is false: set detokenize"
        )
    try:
        check_tools_suit(params, is_structured=params.grammar is not None, must_call=chat.must_call)
    except ContractError as refusal:
        raise RequestError.of(refusal) from None
