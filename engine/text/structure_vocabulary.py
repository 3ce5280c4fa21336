"""The vocabulary of structured outputs: the tokens that the model can generate, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as BackendTokenizer

# Imported with the first structured output: an engine without one needs no llguidance.
if TYPE_CHECKING:
    import llguidance

#: llguidance takes a token that begins with this byte, which UTF-8 does not have, as special.
_SPECIAL_MARK = b"\xff"


def read_vocabulary(
    backend: BackendTokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> llguidance.LLTokenizer:
    """Return a vocabulary of exactly `vocab_size` tokens.

    Tokens that only the tokenizer has are left out, so that a grammar that names one is refused.
    Ids that only the model has get no text.

    Args:
        backend: The model's tokenizer, which may have more tokens or fewer.
        vocab_size: Width of the model's logits.
        eos_token_ids: Tokens that end the outputs.
    """
    import llguidance

    # A copy without padding and truncation, which would change the vocabulary's text.
    copied = BackendTokenizer.from_str(backend.to_str())
    copied.no_padding()
    copied.no_truncation()
    ends = list(eos_token_ids)
    num_tokens = _num_tokens(copied)
    if num_tokens <= vocab_size and max(ends) < num_tokens:
        return llguidance.LLTokenizer(copied.to_str(), n_vocab=vocab_size, eos_token=ends)
    # llguidance can neither leave tokens out, nor take an end token that the tokenizer lacks.
    whole = llguidance.LLTokenizer(copied.to_str(), eos_token=[0])
    first = llguidance.TokenizerWrapper(_FirstTokens(whole, vocab_size, ends))
    return llguidance.LLTokenizer(first, eos_token=ends)


def _num_tokens(backend: BackendTokenizer) -> int:
    """Return the largest token id plus one; ids may have gaps."""
    return max(backend.get_vocab(with_added_tokens=True).values(), default=0) + 1


class _FirstTokens:
    """The first tokens of a vocabulary, with the attributes that `TokenizerWrapper` reads."""

    def __init__(
        self, whole: llguidance.LLTokenizer, num_tokens: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._whole = whole
        known = range(min(num_tokens, whole.vocab_size))
        special = {token_id for token_id in known if whole.is_special_token(token_id)}
        special.update(eos_token_ids)
        self.special_token_ids = sorted(special)
        self.tokens = [self._bytes_of(token_id, special) for token_id in range(num_tokens)]
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None

    def _bytes_of(self, token_id: int, special: set[int]) -> bytes:
        text = b""
        if token_id < self._whole.vocab_size:
            text = self._whole.decode_bytes([token_id])
        elif token_id in special:
            text = f"<[{token_id}]>".encode()
        return _SPECIAL_MARK + text if token_id in special else text

    def __call__(self, text: bytes) -> list[int]:
        token_ids = self._whole.tokenize_bytes(text)
        return [token_id for token_id in token_ids if token_id < len(self.tokens)]
