"""A tokenizer with more tokens than the model: texts that name one of them are refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Chat, Engine, EngineConfig, RequestError, SamplingParams

from ..support.byte_tokenizer import save_byte_tokenizer

#: The byte model's logits end at 263.
EXTRA = [f"[PAD{index}]" for index in range(12)]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def folder(byte_model_path: Path, tmp_path: Path) -> Path:
    """The byte model, its tokenizer with tokens up to 268, and an end token beyond the logits."""
    path = tmp_path / "larger-tokenizer"
    shutil.copytree(byte_model_path, path)
    save_byte_tokenizer(path, EXTRA, TEMPLATE)
    generation_config = path / "generation_config.json"
    values = json.loads(generation_config.read_text())
    generation_config.write_text(json.dumps({**values, "eos_token_id": [256, 268]}))
    return path


def make_engine(folder: Path) -> Engine:
    """Return an engine over this folder."""
    return Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            max_model_len=64,
            kv_cache_bytes=1 << 20,
        )
    )


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ("hello [PAD11] x", {}),
        (Chat(messages=[{"role": "user", "content": "hello [PAD11]"}]), {}),
        ("hello", {"bad_words": ["[PAD11]"]}),
    ],
    ids=["prompt", "messages", "bad_words"],
)
def test_a_text_with_a_token_that_the_model_lacks_is_refused(
    folder: Path, prompt: str | Chat, params: dict[str, Any]
) -> None:
    engine = make_engine(folder)
    with pytest.raises(RequestError, match=r"268.*ids from 0 to 263.*leave it out") as caught:
        engine.generate([prompt], SamplingParams(max_tokens=2, **params))
    assert caught.value.code == "invalid_request"
    [output] = engine.generate(["hello"], SamplingParams(max_tokens=2, ignore_eos=True))
    assert len(output.token_ids) == 2


def test_an_end_token_that_the_model_lacks_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = make_engine(folder)
    assert "end token 268" in caplog.text
    # Forbids every end token.
    [output] = engine.generate(["hello"], SamplingParams(max_tokens=2, min_tokens=2))
    assert len(output.token_ids) == 2
