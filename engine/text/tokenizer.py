"""The tokenizer: text to tokens and back, a thin layer over transformers' fast tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from tokenizers import Tokenizer as BackendTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from batchmill.engine.errors import ModelLoadError, RequestError, UnsupportedModelError

from .chat import Chat
from .chat_template import render_chat, template_of
from .control_tokens import RenderedChat, with_marks
from .response_template import ResponseFormat, UnusableTemplate, read_response_template
from .token_length import TokenLength, longest_token

_log = logging.getLogger(__name__)
#: Longest part of a library's error in ours.
_MAX_ERROR_CHARS = 200


class PooledTokens(NamedTuple):
    """The tokens of a text or of a pair of texts."""

    ids: list[int]
    #: Which of the pair each token belongs to: 0 or 1.
    type_ids: list[int]


class Tokenizer:
    """A model's vocabulary, its rules for splitting text into tokens, and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        #: Token ids are below this; a model's logits may be padded beyond it.
        self.vocab_size = len(tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer files of a Hugging Face folder.

        Raises:
            ModelLoadError: the files are missing or broken.
            UnsupportedModelError: they are not those of a fast (Rust) tokenizer.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            tokenizer("a", verbose=False)  # some broken values only show when it is used
        except Exception as error:  # tokenizers raises bare Exceptions for broken files
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_ERROR_CHARS]
            raise ModelLoadError(
                f"no tokenizer can be read from {folder} ({reason}): it must hold tokenizer.json "
                "and tokenizer_config.json, so correct or download them"
            ) from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer: convert it to a tokenizer.json"
            )
        return cls(tokenizer)

    @property
    def backend(self) -> BackendTokenizer:
        """The underlying tokenizer, for incremental detokenization and structured output."""
        return self._tokenizer.backend_tokenizer

    @cached_property
    def longest_token(self) -> TokenLength | None:
        """Most bytes of a text per token; None if there is no bound."""
        return longest_token(self.backend)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token, if it has one."""
        eos_token_id: int | None = self._tokenizer.eos_token_id
        return eos_token_id

    @cached_property
    def response_format(self) -> ResponseFormat | None:
        """What the tokenizer's own response template says; None if it has none that is usable."""
        template = getattr(self._tokenizer, "response_template", None)
        if template is None:
            return None
        try:
            return read_response_template(template, self._control_texts)
        except UnusableTemplate as error:
            _log.warning("the tokenizer's response_template is not used: %s", error)
            return None

    def chat_template(self, chat: Chat) -> str:
        """Return the text of the template that renders a chat.

        Raises:
            RequestError: `unsupported_parameter`: the model has none.
        """
        return template_of(self._tokenizer, chat)

    def encode(self, text: str, *, max_num_tokens: int | None = None) -> list[int]:
        """Return the token ids of a prompt, with the special tokens that the model expects.

        Args:
            text: The prompt.
            max_num_tokens: Its limit; a text that must have more is refused before it is split.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot encode it; `context_length_exceeded`.
        """
        self._check_length(text, max_num_tokens)
        _check_text(text, "prompt")
        token_ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return token_ids

    def encode_pooled(
        self, text: str, pair: str | None = None, *, max_num_tokens: int, truncate: str | None
    ) -> PooledTokens:
        """Return the tokens of a text to embed, or of a pair to score, with special tokens.

        Args:
            text: The text, or the first of the pair.
            pair: The second of the pair; None if there is none.
            max_num_tokens: Most tokens.
            truncate: Which side of the text, or of the pair's second, is cut if they are more:
                "start" or "end". None refuses them.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot encode it; `context_length_exceeded`.
        """
        for each in (text, pair or ""):
            _check_text(each, "input")
        if truncate is None and self.longest_token is not None:
            least = self.longest_token.fewest_tokens(text)
            if least > max_num_tokens:
                raise _input_too_long(f"at least {least}", max_num_tokens)
        found = self.backend.encode(text, pair)
        tokens = PooledTokens(list(found.ids), list(found.type_ids))
        num_over = len(found.ids) - max_num_tokens
        if num_over <= 0:
            return tokens
        last = 0 if pair is None else 1
        movable = [
            index
            for index, (sequence, special) in enumerate(
                zip(found.sequence_ids, found.special_tokens_mask, strict=True)
            )
            if sequence == last and not special
        ]
        if truncate is None or num_over >= len(movable):
            raise _input_too_long(str(len(found.ids)), max_num_tokens)
        cut = set(movable[:num_over] if truncate == "start" else movable[-num_over:])
        kept = [index for index in range(len(found.ids)) if index not in cut]
        return PooledTokens(
            [found.ids[index] for index in kept], [found.type_ids[index] for index in kept]
        )

    def encode_plain(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot encode it.
        """
        _check_text(text, "a text")
        token_ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return token_ids

    def apply_chat_template(
        self,
        messages: Chat | Sequence[Mapping[str, Any]],
        *,
        model_name: str = "this model",
        max_num_tokens: int | None = None,
    ) -> list[int]:
        """Return the token ids of a chat; plain messages end where the next message begins.

        Args:
            messages: The chat.
            model_name: The model's name in errors.
            max_num_tokens: As in `encode`.

        Raises:
            RequestError: the model has no chat template, or its template refuses the messages or
                ignores a part of the chat.
        """
        chat = messages if isinstance(messages, Chat) else Chat(messages=messages)
        rendered = self.render_chat(chat, model_name=model_name)
        return self.encode_rendered(rendered, max_num_tokens=max_num_tokens)

    def render_chat(self, chat: Chat, *, model_name: str = "this model") -> RenderedChat:
        """Return the text that the model's template makes of a chat.

        Raises:
            RequestError: as `apply_chat_template`.
        """
        mark = None
        if chat.control_tokens_as_text:
            marked, mark = with_marks(chat.messages, self._control_texts)
            chat = replace(chat, messages=marked)
        return RenderedChat(render_chat(self._tokenizer, chat, model_name), mark)

    def encode_rendered(
        self, rendered: RenderedChat, *, max_num_tokens: int | None = None
    ) -> list[int]:
        """Return the token ids of a rendered chat, whose special tokens the template has written.

        Raises:
            RequestError: as `encode`.
        """
        self._check_length(rendered.text, max_num_tokens)
        _check_text(rendered.text, "a message")
        return [
            token_id for part in rendered.parts for token_id in self._encode_without_special(part)
        ]

    def token_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary; None if there is none."""
        return self.backend.token_to_id(token)

    def _encode_without_special(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return token_ids

    @cached_property
    def _control_texts(self) -> tuple[str, ...]:
        """Texts of the tokens that are found in a text before it is split."""
        return tuple(str(each) for each in self._tokenizer.added_tokens_decoder.values())

    def _check_length(self, text: str, max_num_tokens: int | None) -> None:
        """Refuse by its bytes a text that is far too long: splitting it takes seconds."""
        if max_num_tokens is None or self.longest_token is None:
            return
        least = self.longest_token.fewest_tokens(text)
        if least > max_num_tokens:
            raise RequestError(
                "context_length_exceeded",
                f"prompt has at least {least} tokens, max_model_len is {max_num_tokens + 1} and "
                "one token has to be left for the output: shorten the prompt, set "
                "truncate_prompt_tokens or raise max_model_len",
            )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, unchanged (spaces before punctuation stay)."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Return the vocabulary's entries for token ids."""
        return cast("list[str]", self._tokenizer.convert_ids_to_tokens(list(token_ids)))


def _input_too_long(num_tokens: str, limit: int) -> RequestError:
    return RequestError(
        "context_length_exceeded",
        f"an input has {num_tokens} tokens, the model takes {limit}: shorten it, or set truncate "
        "to 'end' or 'start'",
    )


def _check_text(text: str, name: str) -> None:
    """Check a text that would make the tokenizer raise, and so end the engine and its requests."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "invalid_request",
            f"{name} has a lone surrogate, which UTF-8 cannot encode: leave it out",
        ) from None
