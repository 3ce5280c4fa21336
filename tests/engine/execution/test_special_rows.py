"""Rows with controls or scores, recorded in graphs of their own, get the tokens of plain steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from batchmill.engine import Engine, SamplingParams
from batchmill.engine.errors import EngineError
from batchmill.engine.execution import special_rows
from batchmill.engine.execution.graph_recorder import PlainRecorder
from batchmill.engine.execution.special_rows import SpecialRows
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.sampling import logits_filters
from batchmill.engine.sampling.sampler import Sampler
from batchmill.engine.scheduling.scheduled_batch import StepKind

from ..tiny_model import POISON, Fuse, run

CONTROLS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "frequency and presence": {"frequency_penalty": 0.4, "presence_penalty": -0.3},
    "bias": {"logit_bias": {7: 4.0, 9: -3.5}},
    "allowed": {"allowed_token_ids": [3, 5, 8, 13, 21], "logit_bias": {5: -1.0}},
    "min_tokens": {"min_tokens": 9},
    "logprobs": {"logprobs": 3},
    "entropy": {"entropy": True, "presence_penalty": 1.0},
    "all": {
        "repetition_penalty": 0.8,
        "presence_penalty": 0.5,
        "logit_bias": {11: 2.0, 256: 3.0},
        "min_tokens": 6,
        "logprobs": 1,
        "min_p": 0.05,
    },
}


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return partial(make_engine, decode_graphs=True)


@pytest.fixture
def sampled_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what the sampler samples by itself: rows of each decode-only step."""
    sizes: list[int] = []
    sample = Sampler.sample

    def watched(self: Sampler, logits: Any, batch: Any, recorded: Any = None) -> Any:
        if recorded is not None:
            sizes.append(len(logits))
        return sample(self, logits, batch, recorded)

    monkeypatch.setattr(Sampler, "sample", watched)
    return sizes


def result_of(output: RequestOutput) -> tuple[Any, ...]:
    # Steps of other sizes add up in another order.
    logprobs = [
        {token_id: round(value, 3) for token_id, value in sorted(each.items())}
        for each in output.logprobs or ()
    ]
    entropies = [round(each, 3) for each in output.entropies or ()]
    ending = (output.finish_reason, output.error)
    return output.token_ids, output.text, *ending, logprobs, entropies


def results_of(engine: Engine) -> dict[str, tuple[Any, ...]]:
    return {name: result_of(outputs[-1]) for name, outputs in run(engine).items()}


def params_of(controls: dict[str, Any], **values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "seed": 3, "max_tokens": 16, **values, **controls})


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", CONTROLS)
def test_one_row_gets_what_a_plain_step_gives_it(
    make_engine: Callable[..., Engine], sampled_rows: list[int], name: str, overlap: bool
) -> None:
    results = []
    for decode_graphs in (False, True):
        engine = make_engine(decode_graphs=decode_graphs, overlap=overlap)
        engine.add_request("plain", [1, 2, 3], params_of({}))
        engine.add_request("special", [4, 5, 6, 5], params_of(CONTROLS[name]), [9, 9, 17])
        results.append(results_of(engine))
    assert results[0] == results[1]
    assert sampled_rows == [], "every decode-only step was replayed whole"


@pytest.mark.parametrize("seed", range(6))
def test_requests_that_come_and_go_get_what_plain_steps_give_them(
    make_engine: Callable[..., Engine], sampled_rows: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    trace = []
    for index in range(30):
        controls = rng.choice([{}, {}, *CONTROLS.values(), {"bad_words": ["ab"]}])
        if rng.random() < 0.1:
            controls = {"prompt_logprobs": 1}
        prompt = [rng.randrange(256) for _ in range(rng.randint(1, 9))]
        if rng.random() < 0.05:
            prompt.append(POISON)
        length, temperature = rng.randint(1, 24), rng.choice([0, 0.9])
        controls = {**controls, "min_tokens": min(controls.get("min_tokens", 0), length)}
        params = params_of(controls, max_tokens=length, temperature=temperature, seed=index)
        trace.append((rng.randint(0, 50), f"request {index}", prompt, params))
    trace.sort(key=lambda each: each[0])
    results = []
    for decode_graphs, overlap in ((False, False), (True, False), (True, True)):
        engine = make_engine(
            num_blocks=16, max_num_batched_tokens=16, decode_graphs=decode_graphs, overlap=overlap
        )
        waiting, step = list(trace), 0
        outputs: dict[str, tuple[Any, ...]] = {}
        while waiting or engine.has_unfinished():
            while waiting and waiting[0][0] <= step:
                _, name, prompt, params = waiting.pop(0)
                engine.add_request(name, prompt, params, priority=len(prompt) % 3)
            outputs.update((each.request_id, result_of(each)) for each in engine.step())
            engine._scheduler.check_invariants()
            step += 1
        results.append(outputs)
    assert results[0] == results[1] == results[2]
    assert engine.stats().num_steps_by_kind[StepKind.GRAPH] > len(sampled_rows) / 2


def test_more_rows_than_a_graph_holds_are_sampled_as_before(
    make_engine: Callable[..., Engine], sampled_rows: list[int]
) -> None:
    results = []
    for decode_graphs in (False, True):
        engine = make_engine(decode_graphs=decode_graphs, max_num_seqs=16)
        for index in range(9):
            length = 4 if index else 8
            controls = {**CONTROLS["repetition"], "min_tokens": length}
            params = params_of(controls, max_tokens=length, seed=index)
            engine.add_request(str(index), [index, 7], params)
        results.append(results_of(engine))
    assert results[0] == results[1]
    assert sampled_rows == [9, 9, 9], "the last request goes on alone, in a graph"


def test_rows_that_are_not_recorded_are_looked_at_once(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], params_of({"bad_words": ["ab"]}, max_tokens=8))
    engine.step()
    engine.step()
    monkeypatch.setattr(SpecialRows, "_plan", lambda *_: pytest.fail("looked at again"))
    assert len(run(engine)["a"][-1].token_ids) == 8
    assert engine.stats().num_steps_by_kind[StepKind.GRAPH] == 7


def test_work_that_cannot_be_recorded_is_launched_instead(
    make_engine: Callable[..., Engine],
    sampled_rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = PlainRecorder.record

    def fail(self: PlainRecorder, work: Callable[[], None]) -> Callable[[], None]:
        if isinstance(work, partial) and work.func.__name__ == "_end_scores":
            raise EngineError("a decode step cannot be captured")
        return record(self, work)

    monkeypatch.setattr(PlainRecorder, "record", fail)
    engine = make_engine()
    assert "controls of requests are not recorded" in caplog.text
    engine.add_request("a", [1, 2, 3], params_of(CONTROLS["repetition"], max_tokens=4))
    results_of(engine)
    assert sampled_rows == [1, 1, 1]
    assert engine.stats().num_steps_by_kind[StepKind.GRAPH] == 3


def test_row_without_tokens_says_so(make_engine: Callable[..., Engine]) -> None:
    params = params_of({"allowed_token_ids": [256], "min_tokens": 4})
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], params, [5])
    engine.add_request("b", [1, 2, 4], params_of({}))
    outputs = {name: each[-1] for name, each in run(engine).items()}
    error = outputs["a"].error
    assert error is not None
    assert error.code == "no_token_left"
    assert outputs["b"].error is None


@pytest.mark.parametrize("overlap", [False, True])
def test_row_that_is_not_finite_is_not_hidden_by_controls(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    engine = make_engine(overlap=overlap)
    params = params_of({"allowed_token_ids": [3, 5, 8], "logprobs": 2})
    engine.add_request("broken", [1, 2, 3], params)
    engine.add_request("whole", [1, 2, 4], params_of({}))
    apply = SpecialRows._apply_controls

    def broken(self: SpecialRows, size: int) -> None:
        self._logits[0, 100] = torch.nan  # forbidden, so that sampling does not see it
        apply(self, size)

    engine.step()
    special = engine._pipeline._graphs._special  # type: ignore[union-attr]
    monkeypatch.setattr(SpecialRows, "_apply_controls", broken)
    for size in special._control:
        special._control[size] = partial(special._apply_controls, size)
    special.pause()
    outputs = {name: each[-1] for name, each in run(engine).items()}
    error = outputs["broken"].error
    assert error is not None
    assert error.code == "numerical_error"
    assert outputs["whole"].error is None


@pytest.mark.parametrize("name", CONTROLS)
def test_step_that_failed_is_replayed_correctly(
    make_engine: Callable[..., Engine], fuse: Fuse, name: str
) -> None:
    results = []
    for blows in (False, True):
        engine = make_engine()
        engine.add_request("a", [1, 2, 3], params_of(CONTROLS[name], temperature=0))
        for _ in range(4):
            engine.step()
        if blows:
            fuse.is_blown = True
            with pytest.raises(RuntimeError, match="the device is lost"):
                engine.step()
            fuse.reset()
        results.append(results_of(engine))
    assert results[0] == results[1]


@pytest.mark.parametrize("overlap", [False, True])
def test_typical_rows_are_filtered_in_a_graph_as_torch_filters_them(
    make_engine: Callable[..., Engine],
    sampled_rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
    overlap: bool,
) -> None:
    for module in (special_rows, logits_filters):
        monkeypatch.setattr(module, "uses_numpy", lambda logits: False)
    results = []
    for decode_graphs in (False, True):
        engine = make_engine(decode_graphs=decode_graphs, overlap=overlap)
        engine.add_request("plain", [1, 2, 3], params_of({}))
        for index, controls in enumerate(({}, {"min_p": 0.02}, {"presence_penalty": 0.7})):
            params = params_of({"typical_p": 0.5, **controls}, seed=index)
            engine.add_request(str(index), [4, 5, index], params)
        results.append(results_of(engine))
    assert results[0] == results[1]
    assert sampled_rows == []


def test_steady_steps_upload_nothing_for_their_controls(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(block_size=64)
    engine.add_request("a", [1, 2, 3], params_of(CONTROLS["all"], max_tokens=20))
    for _ in range(8):  # beyond `min_tokens`
        engine.step()
    special = engine._pipeline._graphs._special  # type: ignore[union-attr]
    for uploader in (special._uploader, special._tables._uploader):
        monkeypatch.setattr(uploader, "upload", pytest.fail)
    for _ in range(5):
        (output,) = engine.step()
        assert not output.finished
