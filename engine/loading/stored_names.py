"""Names of stored tensors, as the native decoder calls them.

transformers reads more checkpoints than those that it writes: those of a base model, without the
prefix `model.`, those with the prefix twice, and tied ones that hold only the output layer. In
models that take pictures or sounds, the decoder is a module of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
SCORE: Final = "score.weight"
#: Parts of a decoder whose names begin with `model.`.
_PARTS_OF_MODEL: Final = frozenset({"embed_tokens", "layers", "norm"})
#: Modules that hold a decoder; the last two, in models that take pictures or sounds.
_PREFIXES: Final = ("model.", "text_model.", "language_model.")


def own_names(names: Collection[str], *, is_tied: bool) -> dict[str, str]:
    """Return our name of each stored tensor.

    Args:
        names: The stored names.
        is_tied: Whether the output layer is the embedding, so that either may be stored.
    """
    own = {name: name for name in names}
    if EMBEDDING not in own:
        own = {name: _with_prefix(name) for name in names}
    if is_tied and HEAD in own and EMBEDDING not in own.values():
        own[HEAD] = EMBEDDING
    return own


def _with_prefix(name: str) -> str:
    """Return a name of a base model, or one with the prefix twice, as it is in a whole model."""
    stem = name
    while stem.startswith(_PREFIXES):
        stem = stem.partition(".")[2]
    if stem == HEAD:
        return HEAD
    return f"model.{stem}" if stem.partition(".")[0] in _PARTS_OF_MODEL else name
