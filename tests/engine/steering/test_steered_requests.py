"""Steered requests have the tokens of transformers with hooks that add the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from batchmill.engine import Chat, Engine, RequestError, SamplingParams
from batchmill.engine.contract.steering import SteeringSpec
from batchmill.engine.errors import AdapterError, ConfigError
from batchmill.engine.loading.loading import load_model
from batchmill.engine.steering.vector_file import find_vectors, read_vectors, store_vectors
from batchmill.kernels.ops.linear import dense_linear

from ...support.steering import directions, write_gguf, write_safetensors
from ..tiny_model import check_nothing_is_lost, run, save_model, tiny_engine

NUM_TOKENS = 12
PROMPT = [(7 * index) % 200 + 20 for index in range(19)]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
HIDDEN = 32
ZEROS = np.zeros(HIDDEN, np.float32)


class Steered(NamedTuple):
    """A model, a folder of vectors, and the tokens that transformers computes with each spec."""

    model_folder: Path
    folder: Path
    expected: dict[SteeringSpec | None, list[int]]


def greedy(
    model: LlamaForCausalLM, vectors: dict[int, Any], strength: float, layers: tuple[int, int]
) -> list[int]:
    """Return the likeliest tokens of transformers, with a hook after each layer in the range."""

    def hook(layer: int) -> Callable[..., Any]:
        def add(module: Any, args: Any, output: Any) -> Any:
            steered = strength * torch.from_numpy(vectors[layer])
            if isinstance(output, tuple):
                return (output[0] + steered, *output[1:])
            return output + steered

        return add

    handles = [
        model.model.layers[layer].register_forward_hook(hook(layer))
        for layer in vectors
        if layers[0] <= layer <= layers[1]
    ]
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    for handle in handles:
        handle.remove()
    return ids[len(PROMPT) :]


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Steered:
    root = tmp_path_factory.mktemp("steering")
    model = save_model(root / "model")
    expected: dict[SteeringSpec | None, list[int]] = {None: greedy(model, {}, 1, (0, 1))}
    for seed in range(3):
        vectors = directions(range(2), HIDDEN, seed=seed)
        path = root / f"{seed}.gguf" if seed else root / "0.safetensors"
        (write_gguf if seed else write_safetensors)(path, vectors)
        files = read_vectors(path)
        store_vectors(files, root / "store")
        for strength, layers in ((1.0, None), (-2.5, (0, 0)), (2.0, (1, 1))):
            spec = SteeringSpec(files.digest, strength, layers)
            expected[spec] = greedy(model, vectors, strength, layers or (0, 1))
    assert len({tuple(tokens) for tokens in expected.values()}) > 5
    return Steered(root / "model", root / "store", expected)


MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["cpp", "plain"])
def make_engine(steered: Steered, request: pytest.FixtureRequest) -> MakeEngine:
    """Return engines over the C++ layers, and over those that run op by op."""
    linear = None if request.param == "cpp" else dense_linear
    loaded = load_model(str(steered.model_folder), dtype="float32", device="cpu", linear=linear)

    def make(**settings: Any) -> Engine:
        return tiny_engine(loaded, steering_folder=str(steered.folder), **settings)

    return make


@pytest.mark.parametrize(
    ("settings", "resumed"),
    [
        pytest.param({"max_num_seqs": 1}, 0, id="alone"),
        pytest.param({"max_num_seqs": 10}, 0, id="one batch"),
        pytest.param({"max_num_seqs": 10, "max_num_batched_tokens": 11}, 0, id="chunked"),
        pytest.param({"max_num_seqs": 10, "num_blocks": 20}, 0, id="preempted"),
        pytest.param({"max_num_seqs": 10, "overlap": True}, 5, id="resumed, overlapped"),
        pytest.param({"max_num_seqs": 10, "num_speculative_tokens": 4}, 0, id="drafts"),
        pytest.param({"max_num_seqs": 10, "decode_graphs": True}, 0, id="graphs"),
    ],
)
def test_mixed_batch_equals_transformers_with_hooks(
    steered: Steered, make_engine: MakeEngine, settings: dict[str, Any], resumed: int
) -> None:
    engine = make_engine(**settings)
    names = {f"{index} {spec}": spec for index, spec in enumerate(steered.expected)}
    for _ in range(2):  # the second time from the prefix cache
        for name, spec in names.items():
            tokens = steered.expected[spec][:resumed]
            engine.add_request(name, PROMPT, GREEDY, tokens, steering=spec)
        outputs = {name: outputs[-1].token_ids for name, outputs in run(engine).items()}
        assert outputs == {name: steered.expected[spec] for name, spec in names.items()}
        check_nothing_is_lost(engine)
    if "num_blocks" in settings:
        assert engine.stats().num_preemptions > 0


def test_steerings_share_no_blocks_and_equal_ones_do(
    steered: Steered, make_engine: MakeEngine
) -> None:
    engine = make_engine(num_blocks=128)
    for num_cached in (0, 16):
        for spec, expected in steered.expected.items():
            engine.add_request("r", PROMPT, GREEDY, steering=spec)
            (outputs,) = run(engine).values()
            assert outputs[-1].num_cached_tokens == num_cached, spec
            assert outputs[-1].token_ids == expected


@pytest.mark.feature("guidance_scale")
def test_a_guide_is_steered_like_the_output(steered: Steered, make_engine: MakeEngine) -> None:
    spec = next(each for each in steered.expected if each is not None)
    params = SamplingParams(
        temperature=0, max_tokens=8, ignore_eos=True, guidance_scale=2.0, negative_prompt=PROMPT
    )
    # The same prompt as guide moves nothing, if both are steered.
    engine = make_engine()
    engine.add_request("r", PROMPT, params, steering=spec)
    (outputs,) = run(engine).values()
    assert outputs[-1].token_ids == steered.expected[spec][:8]


def test_a_pooled_request_is_steered(steered: Steered, make_engine: MakeEngine) -> None:
    engine = make_engine()
    spec = next(each for each in steered.expected if each is not None)
    vectors = {}
    for name, each in (("plain", None), ("steered", spec), ("again", spec)):
        engine.add_pooled_request(name, PROMPT, steering=each)
        (outputs,) = run(engine).values()
        vectors[name] = outputs[-1].vector
    assert vectors["steered"] == pytest.approx(vectors["again"], abs=1e-5)
    assert vectors["steered"] != pytest.approx(vectors["plain"], abs=1e-2)


@pytest.mark.parametrize(
    ("layers", "message"),
    [((0, 2), "layers 0 to 1"), ((5, 9), "layers 0 to 1")],
)
def test_layers_that_the_model_lacks_are_refused(
    steered: Steered, make_engine: MakeEngine, layers: tuple[int, int], message: str
) -> None:
    spec = next(each for each in steered.expected if each is not None)
    with pytest.raises(RequestError, match=message):
        make_engine().add_request(
            "r", PROMPT, GREEDY, steering=SteeringSpec(spec.digest, 1.0, layers)
        )


def test_vectors_that_do_not_suit_are_refused(
    steered: Steered, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()

    def refused(spec: SteeringSpec) -> str:
        with pytest.raises(RequestError) as error:
            engine.add_request("r", PROMPT, GREEDY, steering=spec)
        return error.value.message

    def stored(layers: range, hidden: int) -> str:
        path = write_gguf(tmp_path / f"{hidden}.gguf", directions(layers, hidden, seed=9))
        files = read_vectors(path)
        store_vectors(files, steered.folder)
        return files.digest

    assert "belongs to another one" in refused(SteeringSpec(stored(range(2), 16)))
    assert "belongs to another one" in refused(SteeringSpec(stored(range(1, 5), HIDDEN)))
    second_only = SteeringSpec(stored(range(1, 2), HIDDEN), 1.0, (0, 0))
    assert "has them in layers 1 to 1" in refused(second_only)
    path = write_gguf(tmp_path / "half.gguf", {**directions(range(1), HIDDEN, seed=9), 1: ZEROS})
    half = read_vectors(path)
    store_vectors(half, steered.folder)
    assert "in layers 1 to 1 are 0 in float32" in refused(SteeringSpec(half.digest, 1.0, (1, 1)))
    assert "not in this worker's folder" in refused(SteeringSpec("0" * 32))
    assert "not in this worker's folder" in refused(SteeringSpec("../store"))
    loaded = load_model(str(steered.model_folder), dtype="float32", device="cpu")
    with pytest.raises(RequestError, match="set steering_folder"):
        tiny_engine(loaded).add_request("r", PROMPT, GREEDY, steering=second_only)
    with pytest.raises(ConfigError, match="batchmill steering add"):
        tiny_engine(loaded, steering_folder=str(tmp_path / "missing"))


def test_equal_directions_have_one_digest_in_either_format(tmp_path: Path) -> None:
    vectors = directions(range(1, 4), 8, seed=1)
    one = read_vectors(write_gguf(tmp_path / "a.gguf", vectors))
    other = read_vectors(write_safetensors(tmp_path / "a.safetensors", vectors))
    assert one.digest == other.digest
    assert list(one.directions) == [1, 2, 3]
    assert (
        read_vectors(
            write_safetensors(tmp_path / "b.safetensors", {**vectors, 3: vectors[2]})
        ).digest
        != one.digest
    )
    folder = store_vectors(one, tmp_path / "store")
    assert find_vectors(tmp_path / "store", one.digest).digest == one.digest
    write_safetensors(folder / "directions.safetensors", directions(range(1), 8, seed=2))
    with pytest.raises(AdapterError, match="was changed"):
        find_vectors(tmp_path / "store", one.digest)
    store_vectors(one, tmp_path / "store")  # adding it again mends it
    assert find_vectors(tmp_path / "store", one.digest).digest == one.digest


def test_files_that_are_no_vectors_are_refused(tmp_path: Path) -> None:
    vectors = directions(range(2), 8, seed=1)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and more")
    (tmp_path / "broken.safetensors").write_bytes(b"{")
    (tmp_path / "vectors.bin").write_bytes(b"")
    nan = {0: vectors[0] * float("nan")}
    sizes = {0: vectors[0], 1: vectors[1][:4]}
    large = {0: np.full(8, 1e300)}
    for path, message in (
        (tmp_path / "vectors.bin", "neither"),
        (tmp_path / "broken.gguf", "cannot be read"),
        (tmp_path / "broken.safetensors", "cannot be read"),
        (tmp_path / "missing.gguf", "cannot be read"),
        (write_gguf(tmp_path / "model.gguf", vectors, "llama"), "'llama'"),
        (write_safetensors(tmp_path / "nan.safetensors", nan), "not finite"),
        (write_safetensors(tmp_path / "large.safetensors", large), "not finite"),
        (write_safetensors(tmp_path / "short.safetensors", {0: vectors[0][:0]}), "must be a row"),
        (write_safetensors(tmp_path / "sizes.safetensors", sizes), "same size"),
        (write_safetensors(tmp_path / "none.safetensors", {}), "at least one"),
        (write_safetensors(tmp_path / "zeros.safetensors", {0: vectors[0] * 0}), "steer nothing"),
        (write_safetensors(tmp_path / "high.safetensors", {9999: vectors[0]}), "names are"),
    ):
        with pytest.raises(AdapterError, match=message):
            read_vectors(path)


def test_a_chat_is_steered_too(steered: Steered, make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_len=128)
    spec = next(each for each in steered.expected if each is not None)
    chat = Chat(messages=[{"role": "user", "content": "hi"}])
    found = []
    for each in (None, spec):
        engine.add_request("r", chat, GREEDY, steering=each)
        (outputs,) = run(engine).values()
        found.append(outputs[-1].token_ids)
    assert found[0] != found[1]
