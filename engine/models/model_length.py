"""How long a sequence may be that a model was made for."""

from __future__ import annotations

from transformers import PreTrainedConfig

from batchmill.engine.errors import ConfigError, UnsupportedModelError

from .rope_config import longest_exact_length


def longest_length(hf_config: PreTrainedConfig) -> int:
    """Tokens of the longest sequence that is computed as the model was made for.

    Raises:
        UnsupportedModelError: the configuration does not say.
    """
    text_config = hf_config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit is None:
        raise UnsupportedModelError("its configuration has no max_position_embeddings")
    return longest_exact_length({**text_config.to_dict(), "max_position_embeddings": limit})


def check_max_model_len(max_model_len: int, limit: int) -> None:
    """Refuse sequences that are longer than a model was made for.

    Args:
        max_model_len: Longest sequence that is asked for, tokens.
        limit: Longest one that the model was made for, tokens.

    Raises:
        ConfigError: it is exceeded.
    """
    if max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {max_model_len}, and the model is made for sequences of up to "
            f"{limit} tokens: set max_model_len to {limit} or less"
        )
