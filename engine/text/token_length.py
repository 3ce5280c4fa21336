"""The fewest tokens that a text can have, by its bytes, if a tokenizer has such a bound."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer as BackendTokenizer

#: NFC composes a text to no less than this part of its bytes.
_COMPOSED_PART: Final = 4
#: Steps before the model that drop no character, and change none into fewer.
_LOSSLESS: Final = frozenset({"ByteLevel", "Digits", "Metaspace", "Prepend"})


@dataclass(frozen=True, slots=True)
class TokenLength:
    """How many bytes of a text one token can stand for."""

    #: Of the longest token.
    num_bytes: int
    #: Bytes that the vocabulary does not have, so that they become no token.
    dropped: bytes

    def fewest_tokens(self, text: str) -> int:
        """Return a number of tokens that the text has at least."""
        kept = text.encode(errors="surrogatepass").translate(None, self.dropped)
        return -(-len(kept) // self.num_bytes)


def longest_token(backend: BackendTokenizer) -> TokenLength | None:
    """Return a bound on the bytes of a text per token; None if there is none.

    A tokenizer that drops characters (by a normalizer, or beside an added token that strips
    spaces), or that writes any unknown word as one token, has none.
    """
    described = json.loads(backend.to_str())
    model, added = described["model"], described["added_tokens"] or ()
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    steps = [*_steps(described["normalizer"]), *_steps(described["pre_tokenizer"])]
    is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
    vocabulary = model["vocab"]
    if model["type"] != "BPE":
        return None
    if is_byte_level:
        missing = bytes(b for b, char in _BYTE_CHARS.items() if char not in vocabulary)
        longest = max(map(len, vocabulary))
    elif model["byte_fallback"] and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        missing = b""
        longest = max(len(token.encode()) for token in vocabulary)
    else:
        return None
    longest = max(longest, *(len(token["content"].encode()) for token in added), 1)
    factor = 1
    for step in steps:
        if step["type"] == "NFC":
            factor = _COMPOSED_PART
        elif not _is_lossless(step):
            return None
    return TokenLength(factor * longest, missing)


def _byte_chars() -> dict[int, str]:
    """Return the character that stands for each byte in the vocabulary of a byte-level tokenizer.

    Printable bytes stand for themselves; the others follow, in order, from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable}
    return chars | {byte: chr(256 + place) for place, byte in enumerate(others)}


_BYTE_CHARS: Final = _byte_chars()


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    inner = step.get("normalizers", step.get("pretokenizers"))
    if inner is None:
        yield step
    for each in inner or ():
        yield from _steps(each)


def _is_lossless(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(step["content"]) >= len(pattern)
    return step["type"] in _LOSSLESS
