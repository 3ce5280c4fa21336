"""How a chat request calls functions: the format of its calls, and the grammar that demands one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchmill.engine.contract.agreement import check_tools_suit
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.errors import RequestError
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.text.thoughts import (
    THOUGHT_MARKERS,
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

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader needs to see, and that may be special tokens."""
        return (*self.form.markers, *(THOUGHT_MARKERS if self.separates_thoughts else ()))

    def reader(self, prompt_token_ids: Sequence[int], seed: int) -> ToolCallReader:
        """Return a reader for one sample's output."""
        end_of_thought = ""
        if self.grammar is None:  # otherwise the output is calls and nothing else
            last = prompt_token_ids[-_MAX_MARKER_TOKENS:]
            prompt = self.tokenizer.decode(last, skip_special_tokens=False)
            end_of_thought = end_of_open_thought(prompt)
        return ToolCallReader(
            self.form,
            self.chat.callable_functions,
            is_single_call=self.chat.is_single_call,
            prompt_token_ids=prompt_token_ids,
            seed=seed,
            end_of_thought=end_of_thought,
            thoughts=Thoughts() if self.separates_thoughts else None,
        )


def plan_tool_use(
    chat: Chat,
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    *,
    tool_call_parser: str,
    separates_thoughts: bool,
    model_name: str,
) -> ToolUse | None:
    """Find out how the output of a chat calls functions, and whether it has thoughts.

    Args:
        chat: The conversation.
        tokenizer: Has the chat template.
        detokenizer: Knows the special tokens.
        tool_call_parser: The name of a call format, or "auto" to detect it from the template.
        separates_thoughts: Whether thoughts, if the template has their markup, are not text.
        model_name: For the error message.

    Returns:
        None if the chat offers no functions and its model writes no thoughts.

    Raises:
        RequestError: `unsupported_parameter` if the model's call format is not known.
    """
    template = tokenizer.chat_template(chat)
    # An output that must be calls is calls and nothing else.
    separates_thoughts = separates_thoughts and not chat.must_call and writes_thoughts(template)
    if not chat.shown_tools:
        return ToolUse(chat, NO_CALLS, None, tokenizer, True) if separates_thoughts else None
    name = detect_format(template) if tool_call_parser == "auto" else tool_call_parser
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
    return ToolUse(chat, FORMATS[name], grammar, tokenizer, separates_thoughts)


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
