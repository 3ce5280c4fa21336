"""Embeddings and scores in the same steps as decoding equal transformers' states, however split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

from batchmill.engine import Engine, EngineConfig, PoolingParams, RequestError, SamplingParams
from batchmill.engine.lifecycle.pooled_intake import TextPair
from batchmill.engine.loading.loading import LoadedModel, load_model

from ...support.tiny_models import SIZES, random_model, save_tokenizer
from ..tiny_model import POISON

TOLERANCE = 2e-6
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def oracle(byte_model_path: Path) -> PreTrainedModel:
    """The layers of the byte model, as transformers computes them."""
    model: PreTrainedModel = AutoModel.from_pretrained(byte_model_path, dtype=torch.float32)
    model.eval()
    return model


def states_of(oracle: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = oracle(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
    return states


def last_state(oracle: PreTrainedModel, token_ids: list[int]) -> NDArray[np.float32]:
    state = torch.nn.functional.normalize(states_of(oracle, token_ids)[-1], dim=0)
    return state.numpy()


def prompts(count: int, *, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, generator.integers(3, 60)).tolist() for _ in range(count)]


def run(engine: Engine) -> dict[str, Any]:
    """Step until all is done; return the last output of each request."""
    outputs = {}
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                outputs[output.request_id] = output
    return outputs


def embed(engine: Engine, inputs: list[list[int]], **params: Any) -> list[NDArray[np.float32]]:
    for index, each in enumerate(inputs):
        engine.add_pooled_request(str(index), each, PoolingParams(**params))
    outputs = run(engine)
    found = [outputs[str(index)] for index in range(len(inputs))]
    assert all(each.finish_reason == "stop" and each.token_ids == [] for each in found)
    return [each.vector for each in found]


def test_last_token_equals_transformers_beside_requests_that_decode(
    byte_engine: MakeEngine, oracle: PreTrainedModel
) -> None:
    inputs = prompts(12)
    generated = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    alone = byte_engine().generate(["abc", "some other text"], generated)
    engine = byte_engine(max_num_batched_tokens=48)
    for index, text in enumerate(["abc", "some other text"]):
        engine.add_request(f"g{index}", text, generated)
    engine.step()
    for index, each in enumerate(inputs):
        engine.add_pooled_request(f"e{index}", each)
    outputs = run(engine)
    for index, each in enumerate(inputs):
        found = outputs[f"e{index}"]
        assert found.vector == pytest.approx(last_state(oracle, each), abs=TOLERANCE)
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(each), 0)
    for index, generated_alone in enumerate(alone):
        assert outputs[f"g{index}"].token_ids == generated_alone.token_ids
    assert engine.stats().num_generated_tokens == 48


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 17},
        {"overlap": True, "max_num_batched_tokens": 29},
        {"enable_prefix_caching": False},
        {"decode_graphs": True},
    ],
    ids=lambda each: "-".join(each) or "plain",
)
def test_a_vector_does_not_depend_on_its_batch_and_chunks(
    byte_engine: MakeEngine, oracle: PreTrainedModel, pooling: str, settings: dict[str, Any]
) -> None:
    shared = prompts(1, seed=3)[0] * 2
    inputs = [shared[:40] + each for each in prompts(6, seed=4)] + prompts(6, seed=5)
    found = embed(byte_engine(**settings), inputs, pooling=pooling, normalize=False)
    for each, vector in zip(inputs, found, strict=True):
        states = states_of(oracle, each)
        expected = states[-1] if pooling == "last" else states.mean(0)
        assert vector == pytest.approx(expected.numpy(), abs=2e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_cached_prefixes_change_no_vector(
    byte_engine: MakeEngine, oracle: PreTrainedModel, pooling: str
) -> None:
    """Blocks hold keys and values, not states: a mean computes all tokens, the last does not."""
    prompt = prompts(1, seed=8)[0] * 3
    engine = byte_engine()
    engine.generate([prompt], SamplingParams(max_tokens=1))
    (vector,) = embed(engine, [prompt], pooling=pooling, normalize=False)
    states = states_of(oracle, prompt)
    expected = states[-1] if pooling == "last" else states.mean(0)
    assert vector == pytest.approx(expected.numpy(), abs=2e-5)
    assert (engine.stats().num_cached_tokens > 0) == (pooling == "last")
    # What a pooled request has computed serves those that generate.
    before = engine.stats().num_cached_tokens
    engine.reset_prefix_cache()
    embed(engine, [prompt], pooling=pooling)
    engine.generate([[*prompt, 1]], SamplingParams(max_tokens=1))
    assert engine.stats().num_cached_tokens - before >= len(prompt) - 4


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_preempted_request_computes_the_same_vector(
    make_engine: Callable[..., Engine], tiny_model: LoadedModel, pooling: str
) -> None:
    inputs = [[each % 250 for each in range(start, start + 40)] for start in (0, 60, 120)]
    alone = [embed(make_engine(), [each], pooling=pooling)[0] for each in inputs]
    engine = make_engine(num_blocks=16, max_num_batched_tokens=8)
    engine.add_pooled_request("0", inputs[0], PoolingParams(pooling=pooling), priority=2)
    engine.step()
    engine.step()
    # It needs the blocks of the one that has begun.
    engine.add_pooled_request("1", inputs[1], PoolingParams(pooling=pooling), priority=0)
    engine.add_pooled_request("2", inputs[2], PoolingParams(pooling=pooling), priority=1)
    outputs = run(engine)
    assert engine.num_preemptions >= 1
    for index, expected in enumerate(alone):
        assert outputs[str(index)].vector == pytest.approx(expected, abs=TOLERANCE)


def test_a_step_that_failed_is_computed_again_without_a_trace(
    make_engine: Callable[..., Engine], fuse: Any
) -> None:
    prompt = [each % 250 for each in range(50)]
    (expected,) = embed(make_engine(), [prompt], pooling="mean")
    engine = make_engine(max_num_batched_tokens=16)
    engine.add_pooled_request("0", prompt, PoolingParams(pooling="mean"))
    engine.step()
    fuse.is_blown = True
    with pytest.raises(RuntimeError, match="lost"):
        engine.step()
    fuse.reset()
    assert run(engine)["0"].vector == pytest.approx(expected, abs=TOLERANCE)


def test_a_vector_that_is_not_finite_fails_its_request_alone(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    for name, token_ids in (("good", [1, 2, 3]), ("bad", [1, POISON, 3]), ("mean", [POISON, 4])):
        pooling = "mean" if name == "mean" else "last"
        engine.add_pooled_request(name, token_ids, PoolingParams(pooling=pooling))
    outputs = run(engine)
    assert outputs["good"].finish_reason == "stop"
    for name in ("bad", "mean"):
        assert outputs[name].error is not None
        assert outputs[name].error.code == "numerical_error"


def test_dimensions_are_cut_before_the_vector_is_scaled(
    byte_engine: MakeEngine, oracle: PreTrainedModel
) -> None:
    prompt = prompts(1)[0]
    (vector,) = embed(byte_engine(), [prompt], dimensions=7)
    state = states_of(oracle, prompt)[-1][:7]
    assert vector == pytest.approx((state / state.norm()).numpy(), abs=TOLERANCE)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_a_prompt_may_fill_the_model_and_a_longer_one_is_cut_or_refused(
    byte_engine: MakeEngine, oracle: PreTrainedModel
) -> None:
    engine = byte_engine(max_model_len=64)
    text = "".join(chr(97 + each % 26) for each in range(70))
    with pytest.raises(RequestError, match="70 tokens, the model takes 64") as refusal:
        engine.add_pooled_request("0", text)
    assert refusal.value.code == "context_length_exceeded"
    for side, kept in (("end", text[:64]), ("start", text[-64:])):
        engine.add_pooled_request("0", text, PoolingParams(truncate=side))
        vector = run(engine)["0"].vector
        assert vector == pytest.approx(
            last_state(oracle, engine.tokenizer.encode(kept)), abs=TOLERANCE
        )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pooling": "cls"}, "for encoders"),
        ({"dimensions": 33}, "have 32"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"dimensions": True}, "dimensions is True"),
        ({"pooling": "max"}, "choose one of last, mean, cls"),
        ({"truncate": "middle"}, "choose one of start, end"),
        ({"normalize": 1}, "normalize is 1"),
        ({"task": "score"}, "no classification head"),
        ({"task": "score", "dimensions": 3}, "dimensions does not belong to scores"),
        ({"activation": "softmax"}, "activation does not belong to an embedding"),
        ({"task": "rank"}, "choose one of embed, score"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    byte_engine: MakeEngine, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        byte_engine().add_pooled_request("0", [1, 2], PoolingParams(**params))


@pytest.mark.parametrize("prompt", [[], [264], [-1], [True], ["a"], b"ab", 3, "\ud800"])
def test_a_hostile_input_is_refused(byte_engine: MakeEngine, prompt: Any) -> None:
    with pytest.raises(RequestError):
        byte_engine().add_pooled_request("0", prompt)


def test_a_pooled_request_can_be_aborted(byte_engine: MakeEngine) -> None:
    engine = byte_engine(max_num_batched_tokens=16)
    engine.add_pooled_request("0", list(range(40)))
    engine.step()
    assert engine.abort("0")
    output = run(engine)["0"]
    assert (output.finish_reason, output.vector) == ("abort", None)


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def scoring(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Path, Any]:
    """A decoder with a classification head of three labels, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("scoring")
    config = {"Llama": LlamaConfig, "Qwen3": Qwen3Config}[request.param](
        **SIZES, num_labels=3, id2label={0: "no", 1: "maybe", 2: "yes"}
    )
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, model


def small_engine(folder: Path, **settings: Any) -> Engine:
    return Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            max_model_len=64,
            max_num_seqs=4,
            kv_cache_bytes=4 << 20,
            **settings,
        )
    )


def test_scores_of_a_classification_head_equal_transformers(scoring: tuple[Path, Any]) -> None:
    folder, model = scoring
    engine = small_engine(folder, max_num_batched_tokens=16)
    assert engine.pooling == (("embed", "score"), 48, ("no", "maybe", "yes"))
    inputs = [[each % 200 + 3 for each in range(start, start + 20)] for start in range(0, 120, 20)]
    for activation in ("softmax", "none", "sigmoid"):
        for index, each in enumerate(inputs):
            params = PoolingParams(task="score", activation=activation)
            engine.add_pooled_request(str(index), each, params)
        outputs = run(engine)
        with torch.inference_mode():
            logits = torch.cat([model(input_ids=torch.tensor([each])).logits for each in inputs])
        expected = {"softmax": logits.softmax(-1), "none": logits, "sigmoid": logits.sigmoid()}
        found = np.stack([outputs[str(index)].vector for index in range(len(inputs))])
        assert found == pytest.approx(expected[activation].numpy(), abs=1e-5)


def test_a_pair_is_scored_with_the_tokens_of_both(scoring: tuple[Path, Any]) -> None:
    folder, model = scoring
    engine = small_engine(folder)
    engine.add_pooled_request("0", TextPair("w5 w6", "w9 w10"), PoolingParams(task="score"))
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[5, 6, 9, 10]])).logits[0].softmax(-1)
    assert run(engine)["0"].vector == pytest.approx(expected.numpy(), abs=1e-5)
    with pytest.raises(RequestError, match="a pair is scored, not embedded"):
        engine.add_pooled_request("0", TextPair("w5", "w6"))


def test_a_model_without_an_output_layer_refuses_to_generate(scoring: tuple[Path, Any]) -> None:
    engine = small_engine(scoring[0])
    with pytest.raises(RequestError, match="generates no text") as refusal:
        engine.add_request("0", [4, 5])
    assert refusal.value.code == "unsupported_parameter"


def test_the_layers_alone_are_a_model_that_embeds(tmp_path: Path) -> None:
    model = random_model(Qwen3Config(**SIZES), tmp_path / "whole")
    layers: Any = model.base_model
    layers.config.architectures = ["Qwen3Model"]
    layers.save_pretrained(tmp_path / "layers")
    save_tokenizer(tmp_path / "layers")
    engine = small_engine(tmp_path / "layers")
    assert engine.pooling.tasks == ("embed",)
    (vector,) = embed(engine, [[4, 5, 6]])
    assert vector == pytest.approx(last_state(layers, [4, 5, 6]), abs=TOLERANCE)


def test_a_model_that_transformers_computes_embeds_beside_generation(tmp_path: Path) -> None:
    random_model(LlamaConfig(**SIZES, hidden_act="gelu"), tmp_path)
    engine = Engine(
        EngineConfig(
            model=str(tmp_path),
            dtype="float32",
            device="cpu",
            max_model_len=64,
            max_num_seqs=4,
            max_num_batched_tokens=24,
            kv_cache_bytes=4 << 20,
        ),
        loaded=load_model(str(tmp_path), dtype="float32", device="cpu"),
    )
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    inputs = [[each % 200 + 3 for each in range(start, start + 30)] for start in (0, 40)]
    engine.add_request("g", [4, 5, 6], SamplingParams(max_tokens=8, temperature=0))
    for pooling in ("last", "mean"):
        found = embed(engine, inputs, pooling=pooling, normalize=False)
        for each, vector in zip(inputs, found, strict=True):
            states = states_of(reference.base_model, each)
            expected = states[-1] if pooling == "last" else states.mean(0)
            assert vector == pytest.approx(expected.numpy(), abs=1e-4)
