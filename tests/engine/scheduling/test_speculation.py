"""Draft tokens change no output and lose no block; accepted ones save steps."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchmill.engine import ConfigError, Engine, EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.drafts.drafter import Drafter
from batchmill.engine.lifecycle.parallel_sampling import sample_id
from batchmill.engine.loading.loading import load_model
from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import (
    NO_TOKEN,
    ScheduledBatch,
    ScheduledRequest,
    StepKind,
)
from batchmill.engine.scheduling.speculation import verify_drafts
from batchmill.engine.step.step_inputs import StepInputs

from ..tiny_model import POISON, Fuse, run
from ..traces import check_equal, random_trace, resume, run_trace

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, seed=5, max_tokens=24, ignore_eos=True)
PROMPT = [1, 2, 3]


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    def make(num_blocks: int = 64, *, drafts: int = 0, **settings: Any) -> Engine:
        settings.setdefault("speculative_max_num_seqs", 16)
        return make_engine(num_blocks, num_speculative_tokens=drafts, **settings)

    return make


@dataclass
class Oracle:
    """Replaces `PromptLookup`: knows a request's tokens and proposes them with mistakes."""

    token_ids: list[int]
    rng: random.Random
    #: Per proposed token.
    chance_of_mistake: float = 0.0
    #: Tokens that it proposes by mistake.
    mistakes: tuple[int, ...] = (0, 1, 2)
    #: Whether it always proposes the most tokens.
    is_eager: bool = False

    def propose(self, output_token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        start = len(output_token_ids)
        num_tokens = max_tokens if self.is_eager else self.rng.randint(0, max_tokens)
        known = self.token_ids[start : start + num_tokens]
        return tuple(
            self.rng.choice(self.mistakes) if self.rng.random() < self.chance_of_mistake else each
            for each in known
        )


def set_drafter(engine: Engine, request_id: str, oracle: Oracle) -> None:
    """Let an oracle draft a request's tokens."""
    engine._unfinished._trackers[request_id].request.drafter = Drafter(lookup=oracle)


def generate(engine: Engine, params: SamplingParams, oracle: Oracle) -> list[RequestOutput]:
    """Return all outputs of one request."""
    engine.add_request("a", PROMPT, params)
    set_drafter(engine, "a", oracle)
    return run(engine)["a"]


@pytest.mark.parametrize("seed", range(12))
def test_random_trace_gives_the_same_outputs_whatever_is_drafted(
    make_engine: Callable[..., Engine], seed: int
) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng, num_requests=40)
    settings = {"max_num_seqs": rng.choice([3, 12]), "max_num_batched_tokens": 32}
    resume(make_engine(num_blocks=200, enable_prefix_caching=False), trace)
    expected = run_trace(make_engine(num_blocks=16, **settings), trace)
    tokens = {
        sample_id(name, index): each.token_ids
        for name, outputs in expected.items()
        for index, each in enumerate(outputs[-1].completions)
    }
    mistakes = (0, 1, 2, POISON) if seed % 2 else (0, 1, 2)

    def prepare(engine: Engine, request_id: str) -> None:
        for name, tracker in engine._unfinished._trackers.items():
            request = tracker.request
            if name.split("\0")[0] == request_id and request.drafter is not None:
                set_drafter(engine, name, Oracle(tokens[name], rng, 0.3, mistakes))

    engine = make_engine(
        num_blocks=rng.choice([16, 24]),
        drafts=rng.randint(1, 6),
        speculative_max_num_seqs=rng.choice([2, 16]),
        enable_prefix_caching=rng.random() < 0.7,
        **settings,
    )
    check_equal(trace, run_trace(engine, trace, prepare=prepare), expected)
    stats = engine.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_drafts_of_the_engine_itself_change_no_token(
    make_engine: Callable[..., Engine], params: SamplingParams
) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(4) for _ in range(rng.randint(1, 30))] for _ in range(12)]
    (*expected,) = make_engine().generate(prompts, params)
    engine = make_engine(drafts=5, prompt_lookup_min=1)
    outputs = engine.generate(prompts, params)
    assert [each.token_ids for each in outputs] == [each.token_ids for each in expected]
    assert [each.text for each in outputs] == [each.text for each in expected]
    assert engine.stats().num_draft_tokens > 0


def test_demo_model_copies_the_same_text_in_fewer_steps(demo_model_path: Path) -> None:
    model = load_model(str(demo_model_path), dtype="float32", device="cpu")
    settings: dict[str, Any] = {
        "model": "demo",
        "dtype": "float32",
        "device": "cpu",
        "kv_cache_bytes": 1 << 27,
    }
    plain = Engine(EngineConfig(**settings), loaded=model)
    drafting = Engine(EngineConfig(**settings, num_speculative_tokens=8), loaded=model)
    text = "The miller grinds wheat, rye and oats; the baker buys flour, and the cook buys bread."
    prompt = plain.render_chat([{"role": "user", "content": f"Repeat this sentence: {text}"}])
    for temperature in (0.0, 0.8):
        params = SamplingParams(temperature=temperature, seed=1, max_tokens=48, ignore_eos=True)
        (expected,), (output,) = (each.generate([prompt], params) for each in (plain, drafting))
        assert (output.token_ids, output.text) == (expected.token_ids, expected.text)
    stats = drafting.stats()
    assert stats.num_accepted_tokens > 10
    assert stats.num_steps < plain.stats().num_steps - 10


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_accepted_drafts_save_steps(
    make_engine: Callable[..., Engine], params: SamplingParams
) -> None:
    (free,) = make_engine().generate([PROMPT], params)
    engine = make_engine(drafts=5)
    outputs = generate(engine, params, Oracle(free.token_ids, random.Random(0), is_eager=True))
    assert outputs[-1].token_ids == free.token_ids
    stats = engine.stats()
    # The prompt's step yields one token, and each later step five drafts and one more. The last of
    # the 24 tokens is sampled and not computed.
    assert (stats.num_steps, stats.num_draft_tokens, stats.num_accepted_tokens) == (5, 19, 19)
    assert stats.num_generated_tokens == 24
    assert stats.num_steps_by_kind == {StepKind.PREFILL: 1, StepKind.SPECULATION: 4}


def test_rejected_drafts_cost_no_step(make_engine: Callable[..., Engine]) -> None:
    (free,) = make_engine().generate([PROMPT], GREEDY)
    wrong = [(each + 1) % 256 for each in free.token_ids]
    engine = make_engine(drafts=4)
    outputs = generate(engine, GREEDY, Oracle(wrong, random.Random(0)))
    assert outputs[-1].token_ids == free.token_ids
    stats = engine.stats()
    assert stats.num_steps == 24
    assert (stats.num_draft_tokens > 0, stats.num_accepted_tokens) == (True, 0)


@pytest.mark.parametrize("length", [5, 6, 7, 10])
@pytest.mark.parametrize("by", ["stop_token_ids", "stop", "max_tokens"])
def test_request_finishes_amid_accepted_drafts_where_it_would_have_finished(
    make_engine: Callable[..., Engine], by: str, length: int
) -> None:
    (free,) = make_engine().generate([PROMPT], SAMPLED)
    value: Any = {
        "stop_token_ids": [free.token_ids[length - 1]],
        "stop": [free.text[length : length + 2]],
        "max_tokens": length,
    }[by]
    params = dataclasses.replace(SAMPLED, **{by: value})
    (expected,) = make_engine().generate([PROMPT], params)
    assert len(expected.token_ids) < 24
    engine = make_engine(drafts=5)
    outputs = generate(engine, params, Oracle(free.token_ids, random.Random(0), is_eager=True))
    last = outputs[-1]
    assert (last.token_ids, last.text) == (expected.token_ids, expected.text)
    assert (last.finish_reason, last.stop_reason) == (expected.finish_reason, expected.stop_reason)
    assert last.usage == expected.usage
    assert [token for each in outputs for token in each.new_token_ids] == expected.token_ids
    stats = engine.stats()
    assert stats.num_generated_tokens == len(expected.token_ids)
    assert stats.num_accepted_tokens > 0


def test_blocks_of_accepted_drafts_can_be_shared_and_those_of_rejected_ones_cannot(
    make_engine: Callable[..., Engine],
) -> None:
    (free,) = make_engine().generate([PROMPT], GREEDY)
    engine = make_engine(drafts=5)
    generate(engine, GREEDY, Oracle(free.token_ids, random.Random(2), 0.3))
    prompt = PROMPT + free.token_ids
    (expected,) = make_engine().generate([prompt], GREEDY)
    (output,) = engine.generate([prompt], GREEDY)
    assert output.token_ids == expected.token_ids
    assert output.usage.cached_tokens == 24, "26 tokens are computed, in blocks of 4"


def test_draft_that_yields_nan_harms_no_request(make_engine: Callable[..., Engine]) -> None:
    (free,) = make_engine().generate([PROMPT], GREEDY)
    engine = make_engine(num_blocks=24, drafts=3)
    engine.add_request("beside", PROMPT, GREEDY)
    outputs = generate(
        engine, GREEDY, Oracle([*free.token_ids[:5], *[POISON] * 19], random.Random(0))
    )
    assert outputs[-1].token_ids == free.token_ids
    assert outputs[-1].finish_reason == "length"
    (again,) = engine.generate([PROMPT], GREEDY)
    assert again.token_ids == free.token_ids


def test_request_whose_draft_yielded_nan_gets_no_more_drafts(
    make_engine: Callable[..., Engine],
) -> None:
    (free,) = make_engine().generate([PROMPT], GREEDY)
    engine = make_engine(drafts=3)
    engine.add_request("a", PROMPT, GREEDY)
    set_drafter(engine, "a", Oracle([POISON] * 24, random.Random(0), is_eager=True))
    outputs = [output for _ in range(30) for output in engine.step()]
    assert outputs[-1].token_ids == free.token_ids
    assert (outputs[-1].finish_reason, engine.stats().num_draft_tokens) == ("length", 3)


def test_drafts_leave_each_running_request_a_block(make_engine: Callable[..., Engine]) -> None:
    prompt = list(range(37))
    (free,) = make_engine().generate([prompt], GREEDY)
    engine = make_engine(num_blocks=16, drafts=30)
    engine.add_request("a", prompt, GREEDY)
    engine.add_request("b", [9] * 5, SamplingParams(max_tokens=24, min_tokens=1))  # no drafts
    set_drafter(engine, "a", Oracle(free.token_ids, random.Random(0), is_eager=True))
    engine.step()
    assert engine.num_free_blocks == 4
    engine.step()
    assert engine.stats().num_draft_tokens == 10, "38 tokens in 12 blocks of 4"
    assert engine.num_free_blocks == 2
    assert run(engine)["a"][-1].token_ids == free.token_ids


@pytest.mark.parametrize(
    "controls",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"logprobs": 1},
        {"logit_bias": {7: 1.0}},
        {"min_tokens": 2},
        {"structured_outputs": {"regex": "[a-z]{2,8}"}, "frequency_penalty": 1.0},
    ],
)
def test_request_whose_controls_follow_its_tokens_gets_no_drafts(
    make_engine: Callable[..., Engine], controls: dict[str, Any]
) -> None:
    engine = make_engine(drafts=4)
    engine.add_request("a", PROMPT, SamplingParams(max_tokens=4, **controls))
    assert engine._unfinished._trackers["a"].request.drafter is None


def test_steps_of_more_requests_have_no_drafts(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(drafts=4, prompt_lookup_min=1, speculative_max_num_seqs=2)
    engine.generate([[7] * 9] * 3, GREEDY)
    assert engine.stats().num_draft_tokens == 0
    engine.generate([[7] * 9] * 2, GREEDY)
    assert engine.stats().num_draft_tokens > 0


def test_drafts_leave_a_prompt_all_of_its_budget(make_engine: Callable[..., Engine]) -> None:
    (free,) = make_engine().generate([PROMPT], GREEDY)
    engine = make_engine(drafts=30, max_num_batched_tokens=16)
    engine.add_request("a", PROMPT, GREEDY)
    set_drafter(engine, "a", Oracle(free.token_ids, random.Random(0), is_eager=True))
    engine.step()
    engine.add_request("b", [9] * 20, GREEDY)
    engine.step()
    waiting = engine._unfinished._trackers["b"].request
    assert waiting.num_computed_tokens == 15, "all but the other request's last token"
    assert {each.request_id for each in engine.step()} == {"a", "b"}
    assert engine.stats().num_draft_tokens == 10, "the budget that the prompt's last 5 tokens leave"


def test_request_that_fits_alone_without_drafts_does_not_run_out_of_memory(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    (free,) = make_engine().generate([PROMPT], GREEDY)
    engine = make_engine(drafts=7)
    engine.add_request("a", PROMPT, GREEDY)
    set_drafter(engine, "a", Oracle(free.token_ids, random.Random(0), is_eager=True))
    engine.step()
    fuse.error, fuse.max_num_tokens = MemoryError(), 1
    assert run(engine)["a"][-1].token_ids == free.token_ids


def test_step_with_drafts_that_was_not_launched_is_scheduled_again(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    (free,) = make_engine().generate([PROMPT], SAMPLED)
    engine = make_engine(drafts=5)
    engine.add_request("a", PROMPT, SAMPLED)
    set_drafter(engine, "a", Oracle(free.token_ids, random.Random(0), 0.1))
    engine.step()
    fuse.is_blown = True
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the device is lost"):
            engine.step()
        engine._scheduler.check_invariants()
    fuse.reset()
    fuse.error, fuse.max_num_tokens = MemoryError(), 2
    assert run(engine)["a"][-1].token_ids == free.token_ids
    assert engine.stats().num_out_of_memory > 0


def test_recorded_decode_steps_continue_from_the_last_accepted_draft(
    make_engine: Callable[..., Engine],
) -> None:
    (free,) = make_engine().generate([PROMPT], SAMPLED)
    engine = make_engine(drafts=3, decode_graphs=True)
    outputs = generate(engine, SAMPLED, Oracle(free.token_ids, random.Random(3), 0.1))
    assert outputs[-1].token_ids == free.token_ids
    kinds = engine.stats().num_steps_by_kind
    assert kinds[StepKind.GRAPH] > 0
    assert kinds[StepKind.PADDED] > 0


@pytest.mark.parametrize("decode_graphs", [False, True], ids=["kernels", "graphs"])
def test_drafts_as_sequences_of_one_token_give_the_same_tokens(
    make_engine: Callable[..., Engine], decode_graphs: bool
) -> None:
    """As on a GPU, whose decode kernel then attends to them."""
    (free,) = make_engine().generate([PROMPT], SAMPLED)
    engine = make_engine(drafts=5, decode_graphs=decode_graphs)
    engine._pipeline._builder._splits_drafts = True
    query_lens: list[int] = []
    forward = engine._loaded.model.forward

    def watched(inputs: StepInputs, *args: Any) -> Any:
        query_lens.append(inputs.max_query_len)
        return forward(inputs, *args)

    if not decode_graphs:
        engine._pipeline._runner._model = SimpleNamespace(forward=watched)
    outputs = generate(engine, SAMPLED, Oracle(free.token_ids, random.Random(3), 0.1))
    assert outputs[-1].token_ids == free.token_ids
    assert engine.stats().num_accepted_tokens > 0
    assert set(query_lens[1:]) <= {1}, "no step after the prompt's needs the prefill kernel"


@pytest.mark.parametrize(
    ("sampled", "kept"),
    [
        ([5, 6, 7, 8], [5, 6, 7, 8]),
        ([5, 6, 9, 8], [5, 6, 9]),
        ([9, 6, 7, 8], [9]),
        ([5, 6, NO_TOKEN, 8], [5, 6]),
        ([9, NO_TOKEN, NO_TOKEN, NO_TOKEN], [9]),
        ([5, 6, 7, None], []),
        ([9, None, 7, 8], []),
    ],
)
def test_tokens_count_up_to_the_first_that_differs_from_its_draft(
    sampled: list[int | None], kept: list[int]
) -> None:
    before, drafted, after = (
        Request(name, [1, 2], GREEDY, seed=0, max_num_tokens=20) for name in "abc"
    )
    item = ScheduledRequest(drafted, 1, 4, needs_sample=True, draft_token_ids=(5, 6, 7))
    chunks = (
        item,
        ScheduledRequest(after, 0, 1, needs_sample=False),
        ScheduledRequest(after, 0, 2, needs_sample=True),
    )
    batch = ScheduledBatch(decodes=(before,), decode_starts=[1], chunks=chunks)
    assert batch.request_of_each_row == [before, *[drafted] * 4, after]
    token_ids, (drafts,) = verify_drafts(batch, [3, *sampled, 4])
    assert token_ids == [3, kept[0] if kept else None, 4]
    assert (drafts.item, drafts.token_ids) == (item, kept)
    assert drafts.num_accepted + drafts.num_rejected == 3


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="overlap is on"):
        EngineConfig(model="tiny", num_speculative_tokens=4, overlap=True)
    with pytest.raises(ConfigError, match="prompt_lookup_min is 5, more than prompt_lookup_max 4"):
        EngineConfig(model="tiny", prompt_lookup_min=5)
    with pytest.raises(ConfigError, match="num_speculative_tokens is -1"):
        EngineConfig(model="tiny", num_speculative_tokens=-1)
    assert not EngineConfig(model="tiny", num_speculative_tokens=4).overlaps_on("cuda")
