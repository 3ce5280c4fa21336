"""Incremental text equals the whole text, and never shows half a character."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from batchmill.engine.text.detokenizer import Detokenizer

TEXTS = {
    "emoji": "Hi 👩‍👩‍👧‍👦! 🏳️‍🌈 flags 🇩🇪🇯🇵, thumbs 👍🏽.",
    "cjk": "漢字かな交じり文。한국어도 있습니다。中文。",
    "accents": "Ünïcödé cafe\N{COMBINING ACUTE ACCENT} ﬁ naïve\u00a0x",
    "code": "def f(x):\n\treturn {'a': x ** 2}  # ok\r\n",
    "right to left": "שלום עולם، مرحبا بالعالم",
    "replacement": "a real \N{REPLACEMENT CHARACTER} stays",
}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """A byte-level BPE vocabulary, as of GPT-2, Llama 3, Qwen and SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the thumbs of flags and text 漢字 the flags"] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<two words>", normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """A vocabulary with byte fallback, as of Llama 2, Mistral and Gemma."""
    pieces = ["<unk>", "</s>", "▁", "▁Hello", "▁world", "lo", "中", *"abcdefgh"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.fixture(scope="module")
def suffixed() -> Tokenizer:
    """A vocabulary that marks ends of words: its tokens do not stand for bytes one by one."""
    vocabulary = {piece: index for index, piece in enumerate(["hel", "lo</w>", "you</w>", "!</w>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id: int | None = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def pieces_of(
    tokenizer: Tokenizer, token_ids: list[int], prompt: list[int] | None = None, skip: bool = True
) -> list[str]:
    """Return the text that each token adds, and the text that the end adds."""
    stream = Detokenizer(tokenizer).stream(prompt or [], skip_special_tokens=skip)
    return [*(stream.append(token_id) for token_id in token_ids), stream.flush()]


@pytest.mark.parametrize("name", TEXTS)
def test_text_grows_by_whole_characters_to_the_whole_text(byte_level: Tokenizer, name: str) -> None:
    text = TEXTS[name]
    *pieces, rest = pieces_of(byte_level, byte_level.encode(text).ids)
    for cut in range(len(pieces) + 1):
        assert text.startswith("".join(pieces[:cut]))
    assert ("".join(pieces), rest) == (text, "")


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_ends_in_half_a_character_is_decoded_as_the_tokenizer_does(
    byte_level: Tokenizer, name: str
) -> None:
    token_ids = byte_level.encode(TEXTS[name]).ids
    for cut in range(len(token_ids) + 1):
        assert "".join(pieces_of(byte_level, token_ids[:cut])) == byte_level.decode(token_ids[:cut])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_any_tokens_give_the_text_that_the_tokenizer_gives(
    byte_level: Tokenizer, seed: int, skip: bool
) -> None:
    rng = random.Random(seed)
    token_ids = [rng.randrange(byte_level.get_vocab_size()) for _ in range(200)]
    expected = byte_level.decode(token_ids, skip_special_tokens=skip)
    assert "".join(pieces_of(byte_level, token_ids, skip=skip)) == expected


@pytest.mark.feature("skip_special_tokens")
def test_special_tokens_are_left_out_or_kept(byte_level: Tokenizer) -> None:
    end, added = id_of(byte_level, "<|end|>"), id_of(byte_level, "<two words>")
    token_ids = [*byte_level.encode("a").ids, end, added]
    assert "".join(pieces_of(byte_level, token_ids, skip=True)) == "a<two words>"
    assert "".join(pieces_of(byte_level, token_ids, skip=False)) == "a<|end|><two words>"


def test_special_token_inside_a_character_does_not_break_it(byte_level: Tokenizer) -> None:
    first, *others = byte_level.encode("é").ids
    token_ids = [first, id_of(byte_level, "<|end|>"), *others]
    assert "".join(pieces_of(byte_level, token_ids)) == "é"


def test_padding_of_the_vocabulary_has_no_text(byte_level: Tokenizer) -> None:
    assert pieces_of(byte_level, [byte_level.get_vocab_size() + 5]) == ["", ""]


def test_byte_tokens_are_held_until_they_are_a_character(sentencepiece: Tokenizer) -> None:
    byte_tokens = [id_of(sentencepiece, f"<0x{byte:02X}>") for byte in "😀".encode()]
    token_ids = [id_of(sentencepiece, "▁Hello"), *byte_tokens, id_of(sentencepiece, "a")]
    prompt = [id_of(sentencepiece, "lo")]
    assert pieces_of(sentencepiece, token_ids, prompt) == [" Hello", "", "", "", "😀", "a", ""]


@pytest.mark.parametrize("seed", range(10))
def test_random_byte_tokens_give_the_utf_8_decoding_of_their_bytes(
    sentencepiece: Tokenizer, seed: int
) -> None:
    rng = random.Random(seed)
    data = bytes(rng.choice(["中".encode()[i % 3], rng.randrange(256)]) for i in range(60))
    token_ids = [id_of(sentencepiece, f"<0x{byte:02X}>") for byte in data]
    *pieces, rest = pieces_of(sentencepiece, token_ids)
    assert "".join(pieces) + rest == data.decode(errors="replace")


def test_other_vocabularies_go_through_their_own_decoder(suffixed: Tokenizer) -> None:
    assert pieces_of(suffixed, [0, 1, 2, 3], prompt=[2]) == [" hel", "lo", " you", " !", ""]


def test_text_depends_on_tokens_alone_when_replayed(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode(TEXTS["emoji"] + TEXTS["cjk"]).ids
    detokenizer = Detokenizer(byte_level)
    whole = pieces_of(byte_level, token_ids)
    for cut in range(0, len(token_ids), 3):
        replayed = detokenizer.stream([], skip_special_tokens=True)
        for token_id in token_ids[:cut]:
            replayed.append(token_id)
        assert [replayed.append(token_id) for token_id in token_ids[cut:]] == whole[cut:-1]


def test_partial_character_is_never_shown(byte_level: Tokenizer) -> None:
    stream = Detokenizer(byte_level).stream([], skip_special_tokens=True)
    shown = [stream.append(token_id) for token_id in byte_level.encode("👩‍👩‍👧‍👦").ids]
    assert REPLACEMENT not in "".join(shown)
