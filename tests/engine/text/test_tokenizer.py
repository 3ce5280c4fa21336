"""Text to tokens and back, and chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from batchmill.engine.errors import ModelLoadError, RequestError
from batchmill.engine.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "Was ist ein Mühlrad? 🎡"}]


@pytest.fixture(scope="module")
def tokenizer(demo_model_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(demo_model_path)


def with_template(demo_model_path: Path, template: str | None) -> Tokenizer:
    hf_tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    assert isinstance(hf_tokenizer, PreTrainedTokenizerFast)
    hf_tokenizer.chat_template = template
    return Tokenizer(hf_tokenizer)


def test_a_text_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    text = " Two  spaces, a tab\t, ümläuts , 漢字 and 🎡 .\n"
    token_ids = tokenizer.encode(text)
    assert all(isinstance(token_id, int) for token_id in token_ids)
    assert max(token_ids) < tokenizer.vocab_size
    assert tokenizer.decode(token_ids) == text


def test_a_chat_becomes_a_flat_list_that_ends_where_the_next_message_begins(
    tokenizer: Tokenizer,
) -> None:
    token_ids = tokenizer.apply_chat_template(MESSAGES)
    assert isinstance(token_ids, list)
    assert all(isinstance(token_id, int) for token_id in token_ids)
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    assert text.endswith(
        "<|im_start|>user\nWas ist ein Mühlrad? 🎡<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<|im_end|>" not in tokenizer.decode(token_ids)


def test_tokens_convert_to_their_entries(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id is not None
    assert tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id]) == ["<|im_end|>"]
    assert tokenizer.backend.token_to_id("<|im_end|>") == tokenizer.eos_token_id


def test_without_a_chat_template_messages_are_refused(demo_model_path: Path) -> None:
    tokenizer = with_template(demo_model_path, None)
    with pytest.raises(RequestError, match="send prompt instead") as caught:
        tokenizer.apply_chat_template(MESSAGES)
    assert caught.value.code == "unsupported_parameter"


def test_text_that_utf8_cannot_encode_is_refused(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_plain):
        with pytest.raises(RequestError, match="has a lone surrogate") as caught:
            encode("a \ud800")
        assert caught.value.code == "invalid_request"


def test_a_template_that_refuses_does_not_quote_the_messages(demo_model_path: Path) -> None:
    template = "{{ raise_exception('I dislike ' + messages[0]['content']) }}"
    tokenizer = with_template(demo_model_path, template)
    with pytest.raises(RequestError, match="refuses these messages") as caught:
        tokenizer.apply_chat_template(MESSAGES)
    assert caught.value.code == "invalid_request"
    assert "Mühlrad" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"must hold tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
