"""The longest sequence that a model was made for, compared with `max_model_len`."""

from __future__ import annotations

from transformers import PreTrainedConfig

from batchmill.engine.errors import ConfigError, UnsupportedModelError

from .rope_config import longest_exact_length


def longest_length(hf_config: PreTrainedConfig) -> int:
    """Return the tokens of the longest sequence that the model was made for.

    Raises:
        UnsupportedModelError: the configuration has no `max_position_embeddings`.
    """
    text_config = hf_config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit is None:
        raise UnsupportedModelError(
            "its configuration has no max_position_embeddings, so its longest sequence is unknown"
        )
    return longest_exact_length({**text_config.to_dict(), "max_position_embeddings": limit})


def check_max_model_len(max_model_len: int, limit: int) -> None:
    """Refuse sequences that are longer than a model was made for.

    Args:
        max_model_len: Longest sequence that is to be computed, tokens.
        limit: Longest sequence that the model was made for, tokens.

    Raises:
        ConfigError: `max_model_len` exceeds the limit.
    """
    if max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {max_model_len}, but the model was made for sequences of at most "
            f"{limit} tokens: set max_model_len to {limit} or less"
        )
