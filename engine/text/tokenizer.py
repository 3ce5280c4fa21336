"""Text to tokens and back, thin over transformers' fast tokenizers."""

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
    """A model's vocabulary, its rules for cutting text into tokens, and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        #: Ids run from 0 to below this; a model's logits may be padded beyond.
        self.vocab_size = len(tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer files of a Hugging Face folder.

        Raises:
            ModelLoadError: they are missing or broken.
            UnsupportedModelError: there is no fast (Rust) tokenizer for them.
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
        """The tokenizer underneath, for incremental detokenization and structured output."""
        return self._tokenizer.backend_tokenizer

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token that the tokenizer names, if it does."""
        eos_token_id: int | None = self._tokenizer.eos_token_id
        return eos_token_id

    def chat_template(self, chat: Chat) -> str:
        """The text of the template that a conversation goes through.

        Raises:
            RequestError: `unsupported_parameter`: the model has none.
        """
        return template_of(self._tokenizer, chat)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work."""
        return self._tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model wants around one.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot hold it.
        """
        _check_text(text, "prompt")
        token_ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return token_ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a piece of text, with nothing around them.

        Raises:
            RequestError: `invalid_request`: UTF-8 cannot hold it.
        """
        _check_text(text, "a text")
        token_ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return token_ids

    def apply_chat_template(
        self, messages: Chat | Sequence[Mapping[str, Any]], *, model_name: str = "this model"
    ) -> list[int]:
        """Token ids of a conversation; of plain messages, up to where the answer to them begins.

        Args:
            messages: The conversation.
            model_name: What errors call the model.

        Raises:
            RequestError: the model has no chat template, or its template refuses the messages or
                ignores a part of the conversation.
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
        """Text of token ids, exactly as they spell it (spaces before punctuation stay)."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries for token ids."""
        return cast("list[str]", self._tokenizer.convert_ids_to_tokens(list(token_ids)))


def _check_text(text: str, name: str) -> None:
    """Refuse what the tokenizer raises on, which would end an engine and all requests in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "invalid_request",
            f"{name} holds a lone surrogate, which UTF-8 cannot encode: leave it out",
        ) from None
