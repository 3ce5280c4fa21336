"""Host time of steps with one controlled row: `python tests/bench/controlled_step.py [steps]`.

As in `launch_cost.py`, whose stand-ins it uses: the engine's Python and Triton's are real; kernels
and graph replays are replaced by nothing. Here the whole step counts (scheduler, inputs, replay,
controls, sampling, outputs), with host and device overlapping as on a GPU. Every request decodes;
one of them has the control. Engines with different controls take turns of 20 steps, in random
order, so that load on the machine reaches all of them alike. Times are of the thread.

Prints medians, and their ratios to a plain step's; first with the controls recorded in graphs, then
with their operations launched one by one, as a step with more such rows does.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from host_step import stub_tokenizer
from launch_cost import (
    CONTROLS,
    NUM_KNOWN,
    NUM_REQUESTS,
    make_pipeline,
    replace_device,
    tiny_model,
)

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.models.decoder import DecoderModel

WARM_UP_STEPS = 30
#: Steps of one engine in turn. The first ones find other engines' data in the caches.
STEPS_IN_TURN = 20
NUM_COLD = 5


def engine_with(
    model: DecoderModel, controls: dict[str, Any], num_steps: int, *, is_recorded: bool
) -> Engine:
    """Return an engine of decoding requests, of which the first has some controls."""
    loaded = LoadedModel(model, model.config, stub_tokenizer(), "stub", frozenset({5}))
    length = 16 + NUM_KNOWN + WARM_UP_STEPS + num_steps
    config = EngineConfig(
        model="stub",
        dtype="float32",
        device="cpu",
        max_model_len=length,
        max_num_seqs=NUM_REQUESTS,
        max_num_batched_tokens=NUM_REQUESTS * length,
        kv_cache_bytes=(length + 32) * NUM_REQUESTS * 2 * 2 * 16 * 4 * model.config.num_layers,
    )
    engine = Engine(config, loaded=loaded)
    engine._overlaps = True
    # An own small cache: nothing reads or writes it.
    engine._pipeline = pipeline = make_pipeline(model, decode_graphs=True)
    assert pipeline._graphs is not None
    if not is_recorded:
        pipeline._graphs.special_step = lambda batch: None  # type: ignore[method-assign]
    pipeline._graphs.logits.zero_()
    pipeline._graphs._is_finite.fill_(True)
    for index in range(NUM_REQUESTS):
        params = SamplingParams(
            max_tokens=None, temperature=1.0, seed=index,
            **(controls if index == 0 else {}),
        )  # fmt: skip
        known = [10 + number for number in range(NUM_KNOWN)]
        engine.add_request(str(index), [1, 2, 3], params, resumed_token_ids=known)
    for _ in range(WARM_UP_STEPS):
        ended = [each.error for each in engine.step() if each.finished]
        assert not ended, ended[0]
    return engine


def step_us(engine: Engine) -> float:
    """Return the thread's time of one step, microseconds."""
    started_at_s = time.thread_time()
    outputs = engine.step()
    taken_s = time.thread_time() - started_at_s
    assert len(outputs) == NUM_REQUESTS
    return 1e6 * taken_s


def main() -> None:
    """Measure and print."""
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    torch.set_num_threads(1)
    replace_device()
    model = tiny_model(2)
    # The prompts' only step is not replayed.
    model.forward = lambda inputs, kv_cache, logits: logits.zero_()  # type: ignore[method-assign]
    engines = {
        f"{name}, {'recorded' if is_recorded else 'one by one'}": engine_with(
            model, params, num_steps, is_recorded=is_recorded
        )
        for is_recorded in (True, False)
        for name, params in CONTROLS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for number in range(num_steps // STEPS_IN_TURN):
        random.Random(number).shuffle(names)
        for name in names:
            turn = [step_us(engines[name]) for _ in range(STEPS_IN_TURN)]
            times[name] += turn[NUM_COLD:]
    plain_us = statistics.median(times["none, recorded"])
    for name, each in times.items():
        us = statistics.median(each)
        print(f"{NUM_REQUESTS} decodes, control {name}: {us:.0f} us, {us / plain_us:.2f} of plain")


if __name__ == "__main__":
    main()
