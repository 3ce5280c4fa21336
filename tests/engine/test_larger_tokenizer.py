"""A tokenizer with more tokens than the model, or fewer: no output has a token that one lacks."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchmill.engine import Chat, Engine, EngineConfig, RequestError, SamplingParams

from ..support.byte_tokenizer import save_byte_tokenizer
from ..support.chat_templates import HERMES, SPECIAL_TOKENS, TOOLS

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


def make_engine(folder: Path, max_model_len: int = 64) -> Engine:
    """Return an engine over this folder."""
    return Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            max_model_len=max_model_len,
            kv_cache_bytes=1 << 20,
        )
    )


def structured(structure: dict[str, Any], seed: int = 1) -> SamplingParams:
    """Return params of an output that follows a structure."""
    return SamplingParams(temperature=2.0, seed=seed, max_tokens=60, structured_outputs=structure)


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


@pytest.mark.feature("structured_outputs")
@pytest.mark.parametrize("extra", [EXTRA, []], ids=["larger", "smaller"])
def test_a_structure_allows_only_tokens_of_model_and_tokenizer(
    byte_model_path: Path, tmp_path: Path, extra: list[str]
) -> None:
    path = tmp_path / "model"
    shutil.copytree(byte_model_path, path)
    save_byte_tokenizer(path, extra, TEMPLATE)
    engine = make_engine(path)
    structures: list[dict[str, Any]] = [
        {"regex": r"(.|\n){20,40}"},
        {"choice": ["yes", "no"]},
        {"json_object": True},
    ]
    outputs = engine.generate(
        ["hello"] * 24, [structured(structures[index % 3], index) for index in range(24)]
    )
    assert {each.finish_reason for each in outputs} <= {"stop", "length"}
    num_tokens = min(264, 257 + len(extra))
    assert all(token_id < num_tokens for each in outputs for token_id in each.token_ids)
    assert {each.text for each in outputs[1::3]} <= {"yes", "no"}
    # The whole mask, because a random model rarely chooses a certain token.
    structure = engine._intake._structures.compile(str(structured(structures[0]).grammar))
    mask = np.frombuffer(structure.matcher.compute_bitmask(), np.uint8)
    allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
    assert allowed.size
    assert allowed.max() < num_tokens


@pytest.mark.feature("structured_outputs")
def test_a_grammar_that_names_a_token_that_the_model_lacks_is_refused(folder: Path) -> None:
    engine = make_engine(folder)
    for token in ("<[268]>", "<[PAD11]>"):
        grammar = f'start: "a" {token}'
        with pytest.raises(RequestError, match="cannot be enforced") as caught:
            engine.generate(["hello"], structured({"grammar": grammar}))
        assert caught.value.code == "invalid_request"
    [output] = engine.generate(["hello"], structured({"choice": ["yes"]}))
    assert output.text == "yes"


def test_calls_are_demanded_of_a_model_with_fewer_tokens_than_its_tokenizer(
    byte_model_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(byte_model_path, path)
    save_byte_tokenizer(path, [*SPECIAL_TOKENS, *EXTRA], HERMES)
    chat = Chat(
        messages=[{"role": "user", "content": "hello"}], tools=TOOLS, tool_choice="required"
    )
    params = SamplingParams(seed=1, max_tokens=300, logit_bias={256: 9})
    [output] = make_engine(path, max_model_len=1024).generate([chat], params)
    assert output.finish_reason == "tool_calls"
