"""Incremental detokenization: text of one token at a time, in whole characters only."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer as BackendTokenizer

#: Prompt tokens that a window decoder sees before the output: enough for any decoder's context.
NUM_CONTEXT_TOKENS = 5
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
#: Steps of the decoders that SentencePiece models are converted to. `Strip` drops a space at the
#: start of a decoded text; an output follows its prompt, so this does not apply to it.
_SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class TextStream(Protocol):
    """The growing text of one output, a function of the prompt and the tokens."""

    def append(self, token_id: int) -> str:
        """Append one token; return the text that is now certain, which is often empty."""

    def flush(self) -> str:
        """End the text and return its rest; an incomplete character becomes U+FFFD."""


class Detokenizer:
    """Makes a `TextStream` for each request.

    In byte-level and SentencePiece vocabularies (all but a few) every token stands for bytes, which
    are looked up once per token; a text is their UTF-8 decoding. Any other vocabulary goes through
    its own decoder over a window of tokens.

    For byte-level vocabularies the text equals the tokenizer's own decoding of the output. For
    SentencePiece ones it continues the prompt, so that a space before the first word is kept.
    """

    def __init__(self, backend: BackendTokenizer) -> None:
        self._backend = backend
        special = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._special_token_ids = frozenset(special)
        #: Texts of the special tokens.
        self.special_texts = frozenset(special.values())
        to_bytes = _piece_decoder(backend)
        self._token_bytes = None if to_bytes is None else _TokenBytes(backend, to_bytes)
        # By the skipped tokens: all special ones, none, or all but a few markers.
        self._whole: dict[frozenset[int], _WholeTexts] = {}

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the special token with this text; None if there is none."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id if token_id in self._special_token_ids else None

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; special tokens have those of their names.

        In a vocabulary whose tokens have no bytes of their own, they are those of its text alone.
        """
        if self._token_bytes is not None:
            return self._token_bytes[token_id]
        return self._backend.decode([token_id], skip_special_tokens=False).encode()

    def stream(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        kept: Iterable[str] = (),
    ) -> TextStream:
        """Return a stream for the output that follows a prompt.

        Args:
            prompt_token_ids: The prompt.
            skip_special_tokens: Leave special tokens out of the text.
            kept: Special tokens to keep nevertheless. A vocabulary that is decoded over a window
                keeps all or none.
        """
        kept_ids = {self.special_token_id(text) for text in kept} - {None}
        if self._token_bytes is None:
            context = list(prompt_token_ids[-NUM_CONTEXT_TOKENS:])
            return _WindowStream(self._backend, context, skip_special_tokens and not kept_ids)
        skipped = self._special_token_ids - kept_ids if skip_special_tokens else frozenset[int]()
        whole = self._whole.get(skipped)
        if whole is None:
            whole = self._whole[skipped] = _WholeTexts(self._token_bytes, skipped)
        return _ByteStream(self._token_bytes, whole)


class _TokenBytes(dict[int, bytes]):
    """Bytes of each token, computed when the token is first seen."""

    def __init__(self, backend: BackendTokenizer, to_bytes: Callable[[str], bytes]) -> None:
        super().__init__()
        self._backend = backend
        self._to_bytes = to_bytes

    def __missing__(self, token_id: int) -> bytes:
        # Models pad their vocabulary: ids past the tokenizer's have no text.
        piece = self._backend.id_to_token(token_id)
        value = b"" if piece is None else self._to_bytes(piece)
        self[token_id] = value
        return value


class _WholeTexts(dict[int, str | None]):
    """Text of each token that stands for whole characters or is skipped; None for all others."""

    def __init__(self, token_bytes: _TokenBytes, skipped: frozenset[int]) -> None:
        super().__init__(dict.fromkeys(skipped, ""))
        self._token_bytes = token_bytes
        self.skipped = skipped

    def __missing__(self, token_id: int) -> str | None:
        try:
            value: str | None = self._token_bytes[token_id].decode()
        except UnicodeDecodeError:
            value = None
        self[token_id] = value
        return value


class _ByteStream:
    """Stream for a vocabulary whose tokens stand for bytes."""

    __slots__ = ("_decoder", "_is_between_characters", "_token_bytes", "_whole")

    def __init__(self, token_bytes: _TokenBytes, whole: _WholeTexts) -> None:
        self._token_bytes = token_bytes
        self._whole = whole
        # Holds back an incomplete character; bytes that cannot become one are U+FFFD at once.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_between_characters = True

    def append(self, token_id: int) -> str:
        if self._is_between_characters:
            text = self._whole[token_id]
            if text is not None:  # nearly always; the decoder takes five times as long
                return text
        if token_id in self._whole.skipped:
            return ""
        decoded = self._decoder.decode(self._token_bytes[token_id])
        self._is_between_characters = not self._decoder.getstate()[0]
        return decoded

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """Stream for any vocabulary: decodes the last few tokens with and without the newest.

    Source: the two-offset incremental decoding of Hugging Face text-generation-inference.
    """

    __slots__ = ("_backend", "_num_shown", "_skip_special_tokens", "_window")

    def __init__(
        self, backend: BackendTokenizer, context: list[int], skip_special_tokens: bool
    ) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._window = context
        # Leading tokens of the window whose text was already returned; they are the context.
        self._num_shown = len(context)

    def append(self, token_id: int) -> str:
        self._window.append(token_id)
        return self._take(final=False)

    def flush(self) -> str:
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        shown = self._decode(self._window[: self._num_shown])
        text = self._decode(self._window)
        if len(text) <= len(shown) or (text.endswith(_REPLACEMENT) and not final):
            return ""
        del self._window[: self._num_shown]
        self._num_shown = len(self._window)
        return text[len(shown) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


def _piece_decoder(backend: BackendTokenizer) -> Callable[[str], bytes] | None:
    """Return the function from a token to its bytes; None if tokens have no bytes of their own."""
    if backend.decoder is None:
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    types = {step["type"] for step in steps}
    if types == {"ByteLevel"}:
        return _byte_level_decoder()
    if types <= _SENTENCEPIECE_STEPS and all(_is_plain(step) for step in steps):
        return _sentencepiece_bytes
    return None


def _is_plain(step: dict[str, Any]) -> bool:
    """Whether a SentencePiece decoding step does no more than replace U+2581 by a space."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": "▁"} and step["content"] == " ")
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == "▁")
    return True


def _byte_level_decoder() -> Callable[[str], bytes]:
    """Return the function from a byte-level token, one printable character per byte, to its bytes.

    Source: GPT-2's byte-level BPE, Radford et al. 2019, section 2.2.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_by_character = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in byte_by_character.values()]
    byte_by_character |= {chr(256 + index): byte for index, byte in enumerate(others)}

    def to_bytes(piece: str) -> bytes:
        values = [byte_by_character.get(character) for character in piece]
        # Added tokens are written as they are, spaces included.
        if None in values:
            return piece.encode()
        return bytes(value for value in values if value is not None)

    return to_bytes


def _sentencepiece_bytes(piece: str) -> bytes:
    """Return the bytes of a SentencePiece token: `<0xE2>` is one byte, U+2581 is a space."""
    byte = _BYTE_TOKEN.fullmatch(piece)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return piece.replace("▁", " ").encode()
