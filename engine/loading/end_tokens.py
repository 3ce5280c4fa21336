"""Reads the ids of the tokens that end a model's outputs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.text.tokenizer import Tokenizer

from .generation_config import read_generation_config

_log = logging.getLogger(__name__)


def read_eos_token_ids(
    folder: Path, hf_config: dict[str, Any], tokenizer: Tokenizer, vocab_size: int
) -> frozenset[int]:
    """Collect the tokens that end an output; chat models name some of them in one place only.

    Ids that the model does not have are left out: it cannot generate them.

    Args:
        folder: The model's folder.
        hf_config: Its config.json.
        tokenizer: Its tokenizer.
        vocab_size: Width of its logits.

    Raises:
        ModelLoadError: generation_config.json or an id is broken.
    """
    token_ids: set[int] = set()
    for source, named in (
        ("generation_config.json", read_generation_config(folder).get("eos_token_id")),
        ("config.json", hf_config.get("eos_token_id")),
        ("the tokenizer", tokenizer.eos_token_id),
    ):
        for token_id in named if isinstance(named, list) else [] if named is None else [named]:
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                raise ModelLoadError(
                    f"eos_token_id of {source} in {folder} must be a token id or a list of them, "
                    f"not {json.dumps(named, default=str)[:80]}: correct it"
                )
            if 0 <= token_id < vocab_size:
                token_ids.add(token_id)
            else:
                _log.warning(
                    "%s names the end token %d, which the model does not have (its ids are 0 to "
                    "%d): it never ends an output",
                    source,
                    token_id,
                    vocab_size - 1,
                )
    return frozenset(token_ids)
