"""A mixed batch of adapters gives each request the tokens that PEFT gives it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from batchmill.engine import Engine, SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.loading.loading import load_model
from batchmill.engine.scheduling.scheduled_batch import StepKind
from batchmill.kernels.ops.linear import dense_linear

from ..tiny_model import check_nothing_is_lost, run, save_model, tiny_engine

pytest.importorskip("peft")
from .peft_folders import KINDS, greedy, save_adapter

NUM_TOKENS = 12
NEGATIVE = [(5 * index) % 180 + 30 for index in range(9)]
SCALE = 2.5
PROMPT = [(7 * index) % 200 + 20 for index in range(19)]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


class Adapters(NamedTuple):
    """Eight adapters in one folder, and the tokens that PEFT computes with each and without."""

    model_folder: Path
    folder: Path
    expected: dict[str | None, list[int]]
    #: The same, guided by `NEGATIVE`.
    guided: dict[str | None, list[int]]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    root = tmp_path_factory.mktemp("adapters")
    model = save_model(root / "model")
    expected: dict[str | None, list[int]] = {None: greedy(model, None, PROMPT, NUM_TOKENS)}
    guide: dict[str, Any] = {"negative": NEGATIVE, "scale": SCALE}
    guided: dict[str | None, list[int]] = {None: greedy(model, None, PROMPT, NUM_TOKENS, **guide)}
    for seed, (name, config) in enumerate(KINDS.items()):
        files = read_files(save_adapter(model, root / f"peft-{seed}", seed=seed, **config))
        store_files(files, root / "store")
        expected[files.digest] = greedy(model, files.path, PROMPT, NUM_TOKENS)
        assert expected[files.digest] != expected[None], f"{name} changes nothing"
        if len(guided) < 3:
            guided[files.digest] = greedy(model, files.path, PROMPT, NUM_TOKENS, **guide)
    return Adapters(root / "model", root / "store", expected, guided)


MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["cpp", "plain"])
def make_engine(adapters: Adapters, request: pytest.FixtureRequest) -> MakeEngine:
    """Return engines over the C++ layers, and over those that run op by op."""
    linear = None if request.param == "cpp" else dense_linear
    loaded = load_model(str(adapters.model_folder), dtype="float32", device="cpu", linear=linear)

    def make(**settings: Any) -> Engine:
        return tiny_engine(loaded, lora_folder=str(adapters.folder), **settings)

    return make


def add_all(engine: Engine, adapters: Adapters, resumed: int = 0) -> None:
    for index, (digest, tokens) in enumerate(adapters.expected.items()):
        name = f"{index} {digest}"
        engine.add_request(name, PROMPT, GREEDY, tokens[:resumed], lora=digest)


def check_all(engine: Engine, adapters: Adapters) -> None:
    outputs = {name: outputs[-1].token_ids for name, outputs in run(engine).items()}
    expected = {
        f"{i} {digest}": tokens for i, (digest, tokens) in enumerate(adapters.expected.items())
    }
    assert outputs == expected
    check_nothing_is_lost(engine)


@pytest.mark.parametrize(
    ("settings", "resumed"),
    [
        pytest.param({"max_num_seqs": 9}, 0, id="one batch"),
        pytest.param({"max_num_seqs": 9, "max_num_batched_tokens": 11}, 0, id="chunked"),
        pytest.param({"max_num_seqs": 9, "num_blocks": 20}, 0, id="preempted"),
        pytest.param({"max_num_seqs": 9, "overlap": True}, 5, id="resumed, overlapped"),
        pytest.param({"max_num_seqs": 9, "lora_bytes": 60_000}, 0, id="few resident"),
        pytest.param(
            {"max_num_seqs": 9, "max_num_batched_tokens": 40, "decode_graphs": True},
            *(0,),
            id="replayed",
        ),
        pytest.param(
            {"max_num_seqs": 5, "lora_bytes": 60_000, "decode_graphs": True, "overlap": True},
            *(3,),
            id="replayed, few resident, resumed, overlapped",
        ),
    ],
)
def test_mixed_batch_equals_peft(
    adapters: Adapters, make_engine: MakeEngine, settings: dict[str, Any], resumed: int
) -> None:
    engine = make_engine(**settings)
    for _ in range(2):  # the second time from the prefix cache
        add_all(engine, adapters, resumed)
        check_all(engine, adapters)
    if "num_blocks" in settings:
        assert engine.stats().num_preemptions > 0
    if "decode_graphs" in settings:
        kinds = engine.stats().num_steps_by_kind
        assert {kind for kind, count in kinds.items() if count} == {StepKind.GRAPH, StepKind.PADDED}


@pytest.mark.feature("guidance_scale")
@pytest.mark.parametrize("decode_graphs", [False, True], ids=["plain", "replayed"])
def test_guided_outputs_of_adapters_equal_peft(
    adapters: Adapters, make_engine: MakeEngine, *, decode_graphs: bool
) -> None:
    engine = make_engine(max_num_seqs=4, lora_bytes=60_000, decode_graphs=decode_graphs)
    params = replace(GREEDY, guidance_scale=SCALE, negative_prompt=NEGATIVE)
    expected = {
        f"{turn} {digest}": (digest, tokens)
        for turn in range(3)
        for digest, tokens in adapters.guided.items()
    }
    for name, (digest, _) in expected.items():
        engine.add_request(name, PROMPT, params, lora=digest)
    outputs = {name: outputs[-1].token_ids for name, outputs in run(engine).items()}
    assert outputs == {name: tokens for name, (_, tokens) in expected.items()}
    assert adapters.guided != {each: adapters.expected[each] for each in adapters.guided}
    check_nothing_is_lost(engine)


#: Controls of the requests of one step, of which some read the tokens of the step before.
CONTROLS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"logprobs": 2},
    {"logit_bias": dict.fromkeys(range(20, 28), 6.0)},  # repeats itself, so that there are drafts
    {"temperature": 0.8, "seed": 5},
]


def with_controls(engine: Engine, adapters: Adapters) -> dict[str, tuple[Any, ...]]:
    """Return the tokens of requests with other adapters and controls, all in one batch."""
    prompt = PROMPT[:6] * 3
    digests = list(adapters.expected)
    for index in range(9):
        params = replace(GREEDY, **CONTROLS[index % len(CONTROLS)])
        engine.add_request(f"{index}", prompt, params, lora=digests[index % len(digests)])
    return {name: tuple(outputs[-1].token_ids) for name, outputs in run(engine).items()}


def test_drafts_and_controls_of_replayed_steps_with_adapters_change_no_token(
    adapters: Adapters, make_engine: MakeEngine
) -> None:
    expected = with_controls(make_engine(max_num_seqs=9), adapters)
    drafts = {"num_speculative_tokens": 3, "prompt_lookup_min": 1, "speculative_max_num_seqs": 9}
    engine = make_engine(max_num_seqs=9, decode_graphs=True, **drafts)
    for _ in range(2):
        assert with_controls(engine, adapters) == expected
    assert engine.stats().num_draft_tokens > 0
    kinds = engine.stats().num_steps_by_kind
    assert {kind for kind, count in kinds.items() if count} <= {StepKind.GRAPH, StepKind.PADDED}
    check_nothing_is_lost(engine)
