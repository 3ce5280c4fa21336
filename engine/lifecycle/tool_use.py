"""What a conversation asks of the engine beyond its prompt: calls, and how they are spelt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchmill.engine.config import EngineConfig
from batchmill.engine.contract.agreement import check_tools_suit
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.errors import RequestError
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.engine.text.tool_calls import FORMATS, ToolCallFormat, detect_format
from batchmill.engine.text.tool_grammar import tool_grammar
from batchmill.engine.text.tool_reader import ToolCallReader


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How one request calls functions."""

    chat: Chat
    form: ToolCallFormat
    #: What the output follows where it has to be calls; None where it may be.
    grammar: str | None

    def reader(self, prompt_token_ids: Sequence[int], seed: int) -> ToolCallReader:
        """A reader for one sample's output."""
        return ToolCallReader(
            self.form,
            self.chat.callable_names,
            is_single_call=self.chat.is_single_call,
            prompt_token_ids=prompt_token_ids,
            seed=seed,
        )


class ChatIntake:
    """Turns conversations into token ids, and finds out how the model calls functions."""

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer, detokenizer: Detokenizer
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer
        self._parser = config.tool_call_parser
        # Not the whole path: errors go to whoever sent the job.
        self._model_name = Path(config.model).name

    def token_ids(self, chat: Chat) -> list[int]:
        """The prompt that the model's template makes of a conversation.

        Raises:
            RequestError: `unsupported_parameter` or `invalid_request`.
        """
        return self._tokenizer.apply_chat_template(chat, model_name=self._model_name)

    def tool_use(self, chat: Chat, params: SamplingParams) -> ToolUse | None:
        """How the conversation's answer calls functions; None where it cannot.

        Raises:
            RequestError: `unsupported_parameter` where nobody knows how the model spells calls;
                `invalid_request` for controls that contradict the tools.
        """
        check_agreement(chat, params)
        if not chat.shown_tools:
            return None
        template = self._tokenizer.chat_template(chat)
        name = detect_format(template) if self._parser == "auto" else self._parser
        if name is None:
            raise RequestError(
                "unsupported_parameter",
                f"tools: how {self._model_name} spells its calls is not known from its chat "
                f"template: the operator can set tool_call_parser to {', '.join(FORMATS)}; or "
                "set tool_choice to none",
            )
        grammar = None
        if chat.must_call:
            grammar = tool_grammar(name, chat, template, self._detokenizer.special_token_id)
        return ToolUse(chat, FORMATS[name], grammar)


def check_agreement(chat: Chat, params: SamplingParams) -> None:
    """Refuse controls that contradict the tools.

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
