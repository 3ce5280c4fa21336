"""The bound on bytes per token: no text has more of them, and other tokenizers have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from batchmill.engine import Engine, RequestError, SamplingParams
from batchmill.engine.text.token_length import TokenLength, longest_token
from batchmill.engine.text.tokenizer import Tokenizer as EngineTokenizer

BYTES = {char: index for index, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}


def byte_level(**parts: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def stripping() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


WITHOUT_BOUND: dict[str, Callable[[], Tokenizer]] = {
    "drops spaces": lambda: byte_level(normalizer=normalizers.Strip()),
    "composes compatible letters": lambda: byte_level(normalizer=normalizers.NFKC()),
    "strips beside a token": stripping,
    "unknown words": lambda: Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")),
    "removes separators": lambda: byte_level(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
        )
    ),
}


@pytest.mark.parametrize("what", WITHOUT_BOUND)
def test_a_tokenizer_that_drops_characters_has_no_bound(what: str) -> None:
    assert longest_token(WITHOUT_BOUND[what]()) is None


def test_the_bound_is_the_longest_token() -> None:
    assert longest_token(byte_level()) == TokenLength(1, b"")
    assert longest_token(byte_level(normalizer=normalizers.NFC())) == TokenLength(4, b"")


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1))
def test_no_text_has_more_bytes_per_token(
    demo_tokenizer: Tokenizer, demo_bound: TokenLength, text: str
) -> None:
    assert demo_bound.fewest_tokens(text) <= len(demo_tokenizer.encode(text).ids)


@pytest.fixture(scope="module")
def demo_tokenizer(demo_model_path: Path) -> Tokenizer:
    return EngineTokenizer.from_folder(demo_model_path).backend


@pytest.fixture(scope="module")
def demo_bound(demo_tokenizer: Tokenizer) -> TokenLength:
    longest = longest_token(demo_tokenizer)
    assert longest is not None
    return longest


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_split(
    byte_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = byte_engine()
    tokenizer = engine._intake._tokenizer
    assert tokenizer.longest_token is not None
    monkeypatch.setattr(tokenizer, "_tokenizer", tokenizer.backend)  # not callable
    text = "x" * (1 << 20)

    with pytest.raises(RequestError, match="prompt has at least") as caught:
        engine.add_request("a", text, SamplingParams(max_tokens=1))

    assert caught.value.code == "context_length_exceeded"
