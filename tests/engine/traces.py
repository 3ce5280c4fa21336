"""Random traces of requests of every kind, and a run of them through an engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from batchmill.engine import Engine, RequestOutput, SamplingParams

from .tiny_model import POISON


@dataclass
class Arrival:
    """One request of a random trace."""

    name: str
    prompt: list[int]
    params: SamplingParams
    arrives_at_step: int
    aborted_after_steps: int | None
    priority: int
    num_resumed: int
    resumed: list[int] = field(default_factory=list)


def random_params(rng: random.Random) -> SamplingParams:
    """Return params with every kind of end, and of control that has to know the last token."""
    values: dict[str, Any] = {"max_tokens": rng.randint(1, 20), "ignore_eos": rng.random() < 0.5}
    values["temperature"] = rng.choice([0, 0.8, 1.2])
    controls = (
        (0.3, "stop", [chr(rng.randrange(97, 123)) for _ in range(3)]),
        (0.3, "stop_token_ids", [rng.randrange(256) for _ in range(20)]),
        (0.2, "seed", rng.randrange(9)),
        (0.1, "n", 3),
        (0.05, "min_p", 0.1),
        (0.05, "repetition_penalty", 1.3),
        (0.05, "no_repeat_ngram_size", 2),
        (0.05, "logprobs", 2),
        (0.05, "min_tokens", 1),
    )
    values |= {name: value for chance, name, value in controls if rng.random() < chance}
    if rng.random() < 0.04:
        values = {"structured_outputs": {"regex": "[a-z]{2,8}"}, "max_tokens": 20}
    return SamplingParams(**values)


def random_trace(rng: random.Random, num_requests: int) -> list[Arrival]:
    """Return requests of every kind: some poisoned, some to be aborted, some to be resumed."""
    prefixes = [[rng.randrange(256) for _ in range(rng.randint(1, 12))] for _ in range(3)]
    trace = []
    for index in range(num_requests):
        params = random_params(rng)
        poison = [POISON] if rng.random() < 0.06 else []
        suffix = [rng.randrange(256) for _ in range(rng.randint(1, 6))]
        is_resumed = rng.random() < 0.2 and params.n == 1 and not poison
        trace.append(
            Arrival(
                f"request {index}",
                rng.choice([[], *prefixes]) + poison + suffix,
                params,
                rng.randint(0, 40),
                rng.randint(0, 12) if rng.random() < 0.15 else None,
                rng.randint(0, 2),
                rng.randint(1, 4) if is_resumed else 0,
            )
        )
    return sorted(trace, key=lambda each: each.arrives_at_step)


def run_trace(
    engine: Engine,
    trace: list[Arrival],
    *,
    prepare: Callable[[Engine, str], None] | None = None,
) -> dict[str, list[RequestOutput]]:
    """Run to the end; `prepare` is called with each request that was added."""
    outputs: dict[str, list[RequestOutput]] = {}
    abort_at: dict[int, list[str]] = {}
    waiting, step = list(trace), 0
    while waiting or engine.has_unfinished():
        while waiting and waiting[0].arrives_at_step <= step:
            each = waiting.pop(0)
            engine.add_request(
                each.name, each.prompt, each.params, each.resumed, priority=each.priority
            )
            if prepare is not None:
                prepare(engine, each.name)
            if each.aborted_after_steps is not None:
                abort_at.setdefault(step + each.aborted_after_steps, []).append(each.name)
        for name in abort_at.pop(step, []):
            engine.abort(name)
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine._scheduler.check_invariants()
        step += 1
        assert step < 5_000, "a livelock"
    return outputs


def whole(output: RequestOutput) -> list[tuple[Any, ...]]:
    """Return the parts of a finished output that must be equal."""
    return [
        (
            each.token_ids,
            each.text,
            each.finish_reason,
            each.stop_reason,
            None if each.error is None else each.error.code,
            None if each.logprobs is None else [list(scores) for scores in each.logprobs],
        )
        for each in output.completions
    ]


def resume(engine: Engine, trace: list[Arrival]) -> None:
    """Give the requests that are to be resumed the tokens that they generate alone."""
    for each in trace:
        if each.num_resumed:
            (output,) = engine.generate([each.prompt], [each.params])
            each.resumed = output.token_ids[: min(each.num_resumed, len(output.token_ids) - 1)]


def check_equal(
    trace: list[Arrival],
    outputs: dict[str, list[RequestOutput]],
    expected: dict[str, list[RequestOutput]],
) -> None:
    """Check that outputs are equal and reported once; an aborted one has the same beginning."""
    assert outputs.keys() == expected.keys()
    for each in trace:
        reports, want = outputs[each.name], expected[each.name][-1]
        assert "".join(output.new_text for output in reports) == reports[-1].text or each.resumed
        reported = [token for output in reports for token in output.new_token_ids]
        assert each.resumed + reported == reports[-1].token_ids
        if each.aborted_after_steps is None:
            assert whole(reports[-1]) == whole(want), each
        else:
            least = min(len(reports[-1].token_ids), len(want.token_ids))
            assert reports[-1].token_ids[:least] == want.token_ids[:least]
