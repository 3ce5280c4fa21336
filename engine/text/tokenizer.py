"""The tokenizer: text to tokens and back, a thin layer over transformers' fast tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as BackendTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from batchmill.engine.errors import ModelLoadError, RequestError, UnsupportedModelError

from .chat import Chat
from .chat_template import render_chat, template_of


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
        except Exception as error:  # tokenizers raises bare Exceptions for broken files
            raise ModelLoadError(
                f"no tokenizer can be read from {folder}: it must hold tokenizer.json and "
                "tokenizer_config.json"
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

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token, if it has one."""
        eos_token_id: int | None = self._tokenizer.eos_token_id
        return eos_token_id

    def chat_template(self, chat: Chat) -> str:
        """Return the text of the template that renders a chat.

        Raises:
            RequestError: `unsupported_parameter`: the model has none.
        """
        return template_of(self._tokenizer, chat)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt, with the special tokens that the model expects.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot encode it.
        """
        _check_text(text, "prompt")
        token_ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return token_ids

    def encode_plain(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot encode it.
        """
        _check_text(text, "a text")
        token_ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return token_ids

    def apply_chat_template(
        self, messages: Chat | Sequence[Mapping[str, Any]], *, model_name: str = "this model"
    ) -> list[int]:
        """Return the token ids of a chat; plain messages end where the next message begins.

        Args:
            messages: The chat.
            model_name: The model's name in errors.

        Raises:
            RequestError: the model has no chat template, or its template refuses the messages or
                ignores a part of the chat.
        """
        chat = messages if isinstance(messages, Chat) else Chat(messages=messages)
        prompt = render_chat(self._tokenizer, chat, model_name)
        _check_text(prompt, "a message")
        # The template writes the special tokens itself.
        token_ids: list[int] = self._tokenizer(prompt, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, unchanged (spaces before punctuation stay)."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Return the vocabulary's entries for token ids."""
        return cast("list[str]", self._tokenizer.convert_ids_to_tokens(list(token_ids)))


def _check_text(text: str, name: str) -> None:
    """Check a text that would make the tokenizer raise, and so end the engine and its requests."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "invalid_request",
            f"{name} has a lone surrogate, which UTF-8 cannot encode: leave it out",
        ) from None
