"""An engine under a queue's load: requests that arrive while others decode, and controls."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_floors import Work
from gpu_models import make_engine, named_shape, random_model
from gpu_recipes import (
    counter_differences,
    give_back,
    params_of,
    prompts_of,
    until_all_decode,
    warm_up,
)
from gpu_report import Bench

from batchmill.engine import Engine, SamplingParams
from batchmill.engine.models.decoder import DecoderModel

#: Tokens of an arriving prompt.
PROMPT_TOKENS = 100
#: Seconds of a measurement; before it, the batch fills and its ages mix.
MEASURED_S = 4.0
#: What one row of a step may ask for without a library that a bare GPU machine lacks.
CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "min_p": {"min_p": 0.05},
    "top_k and top_p": {"top_k": 50, "top_p": 0.9},
    "allowed_token_ids": {"allowed_token_ids": list(range(40))},
    "logit_bias": {"logit_bias": {7: 1.5}},
    "presence_penalty": {"presence_penalty": 0.5},
    "logprobs": {"logprobs": 2},
}


def arrivals(bench: Bench) -> None:
    """Measure a closed loop: whenever a request finishes, another one arrives.

    With 64 requests and 40 tokens each, nearly every step has the prompt of an arriving one.
    """
    model = _model(bench)
    cases = [(rows, tokens) for rows in (64, 256) for tokens in (40, 500)]
    for num_rows, num_tokens in [(3, 5)] if bench.toy else cases:
        bench.check_time(0 if bench.toy else 12)
        engine = make_engine(model, toy=bench.toy, max_num_seqs=num_rows)
        warm_up(engine, model.config.vocab_size, toy=bench.toy)
        loop = ClosedLoop(engine, num_rows, num_tokens, model.config.vocab_size)
        steps = 2 * num_tokens if bench.toy else 0
        loop.run(0 if bench.toy else 1.5, num_steps=max(num_tokens, steps))
        loop.forget()
        before, started_at_s = engine.stats(), time.perf_counter()
        loop.run(0 if bench.toy else MEASURED_S, num_steps=steps)
        elapsed_s, stats = time.perf_counter() - started_at_s, engine.stats()
        counts = counter_differences(before, stats)
        bench.line(
            "arrivals",
            requests=num_rows,
            output_tokens=num_tokens,
            arrivals_per_s=loop.num_finished / elapsed_s,
            output_tokens_per_s=counts["num_generated_tokens"] / elapsed_s,
            first_token_p50_ms=1000 * statistics.median(loop.first_token_s),
            step_p50_ms=1000 * stats.step_time_p50_s,
            step_p99_ms=1000 * stats.step_time_p99_s,
            counts=counts,
        )
        del engine, loop
        give_back(bench)


@dataclass
class ClosedLoop:
    """Requests that replace each other.

    Attributes:
        engine: Runs them.
        num_rows: How many run at once.
        num_tokens: Output tokens of each; the first ones have fewer, so that not all end at once.
        vocab_size: Of the model.
        num_finished: Requests that have finished.
        first_token_s: Seconds from each arrival to its first token.
    """

    engine: Engine
    num_rows: int
    num_tokens: int
    vocab_size: int
    num_finished: int = 0
    first_token_s: list[float] = field(default_factory=list)
    _num_arrived: int = 0
    _arrived_at_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in range(self.num_rows):
            self._arrive(1 + row * self.num_tokens // self.num_rows)

    def run(self, least_s: float, *, num_steps: int) -> None:
        """Run for some seconds, and at least some steps."""
        until_s, done = time.perf_counter() + least_s, 0
        while done < num_steps or time.perf_counter() < until_s:
            done += 1
            for output in self.engine.step():
                arrived_at_s = self._arrived_at_s.pop(output.request_id, None)
                if arrived_at_s is not None:
                    self.first_token_s.append(time.perf_counter() - arrived_at_s)
                if output.finish_reason is not None:
                    self.num_finished += 1
                    self._arrive(self.num_tokens)

    def forget(self) -> None:
        """Forget what was measured: the batch was filling."""
        self.num_finished = 0
        self.first_token_s.clear()

    def _arrive(self, num_tokens: int) -> None:
        name = f"r{self._num_arrived}"
        rng = random.Random(self._num_arrived)
        prompt = [rng.randrange(min(self.vocab_size, 10000)) for _ in range(PROMPT_TOKENS)]
        params = SamplingParams(
            temperature=0.6, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        self._num_arrived += 1
        self._arrived_at_s[name] = time.perf_counter()
        self.engine.add_request(name, prompt, params)


def controls(bench: Bench) -> None:
    """Measure steps of 64 decodes of which one has a control, relative to steps without any."""
    model = _model(bench)
    num_rows, num_steps = (3, 6) if bench.toy else (64, 200)
    plain_ms: float | None = None
    engine = make_engine(model, toy=bench.toy)
    warm_up(engine, model.config.vocab_size, toy=bench.toy)
    for name, values in CONTROLS.items():
        bench.check_time()
        step_ms, counts = _controlled_steps(engine, model, num_rows, num_steps, values)
        while engine.has_unfinished():
            engine.step()
        plain_ms = plain_ms or step_ms
        bench.line(
            "steps with one controlled row",
            control=name,
            requests=num_rows,
            step_ms=step_ms,
            of_plain=step_ms / plain_ms,
            counts=counts,
        )


def _controlled_steps(
    engine: Engine, model: DecoderModel, num_rows: int, num_steps: int, values: dict[str, Any]
) -> tuple[float, dict[str, int]]:
    """Return the median milliseconds of steps of which one row has a control, and the counters."""
    vocab_size = model.config.vocab_size
    work = Work([16] * num_rows, [num_steps + 40] * num_rows)
    for number, (prompt, params) in enumerate(
        zip(prompts_of(work, vocab_size), params_of(work), strict=True)
    ):
        if number == num_rows // 2:
            own = {"temperature": 0.6, "ignore_eos": True, "detokenize": False, **values}
            params = SamplingParams(max_tokens=params.max_tokens, **own)
        engine.add_request(f"r{number}", prompt, params)
    until_all_decode(engine, num_rows)
    before, times_s = engine.stats(), []
    for _ in range(num_steps):
        started_at_s = time.perf_counter()
        engine.step()
        times_s.append(time.perf_counter() - started_at_s)
    return 1000 * statistics.median(times_s), counter_differences(before, engine.stats())


def _model(bench: Bench) -> DecoderModel:
    dtype = torch.float32 if bench.toy else torch.bfloat16
    return random_model(named_shape("Qwen3-0.6B", toy=bench.toy), bench.device, dtype=dtype)
