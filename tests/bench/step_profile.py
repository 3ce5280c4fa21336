"""Profile of a step on a CPU: `python tests/bench/step_profile.py [workload]`.

`decode` (the default): `--batch` requests of `--context` tokens, all of them decoding, `--steps`
steps. Or a workload of `batchmill bench engine` (`bulk`, `shared-prefix`, `long-tail`, `single`),
all steps of one run, prompts included.

Prints for each phase the median microseconds per step, and its share of all steps' time. The C++
layers report matrix products, attention and the rest separately. If the layers run op by op
(without a compiler, or with a model that they do not support), only the model as a whole is
reported. The engine is a worker's, with a stopwatch around some of its methods, which costs a few
microseconds per step in this script only. On a GPU, use `gpu_run.py --only steps-0.6b`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from host_step import Phases, watch_all

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.models.decoder import DecoderModel
from batchmill.worker.bench.figures import ForeignLoad, machine
from batchmill.worker.bench.workloads import WORKLOAD_NAMES, BenchRequest, make_workload

MAX_NUM_BATCHED_TOKENS = 2048
#: The phases of `host_step.watch_all`, and their names here.
NAMES = {
    "schedule": "schedule",
    "inputs": "inputs",
    "head": "model: output head (a matrix product)",
    "runner": "model: embedding, rotation tables, final norm, calls",
    "model": "model: embedding, rotation tables, final norm, calls",
    "sampler": "sampling",
    "rows of logits": "sampling",
    "collect": "sampling",
    "update": "update",
    "tracker and text": "text and stop conditions",
    "outputs": "outputs",
    "rest": "the loop itself",
}
#: In the order of `CppDecoder.phase_s`.
LAYER_NAMES = (
    "model: layers, matrix products",
    "model: layers, attention",
    "model: layers, norms, rotation, cache writes",
)
ORDER = tuple(dict.fromkeys((*list(NAMES.values())[:2], *LAYER_NAMES, *NAMES.values())))


class StepProfiler:
    """Owns the stopwatches around an engine's parts; the module docstring gives their cost."""

    def __init__(self, engine: Engine) -> None:
        """Generate a token, which binds the layers to their cache, and attach the stopwatches."""
        engine.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
        engine.reset_prefix_cache()
        self._engine = engine
        self._phases = Phases()
        watch_all(engine, self._phases)
        model = engine._loaded.model
        #: None if the layers do not run in one C++ call.
        self.layers_s: Tensor | None = None
        if isinstance(model, DecoderModel) and model._fused is not None and model._fused._bound:
            self.layers_s = torch.zeros(len(LAYER_NAMES), dtype=torch.float64)
            model._fused._bound[1].phase_s = self.layers_s
            self._phases.watch(model._head, "_multiply", "head")

    def step(self) -> dict[str, float]:
        """Run one step; return its seconds by name, which add up to the whole."""
        self._phases.elapsed_s.clear()
        if self.layers_s is not None:
            self.layers_s.zero_()
        started_at_s = time.perf_counter()
        self._engine.step()
        total_s = time.perf_counter() - started_at_s
        own_s = total_s - sum(self._phases.elapsed_s.values())
        found: dict[str, float] = defaultdict(float)
        for phase, elapsed_s in (*self._phases.elapsed_s.items(), ("rest", own_s)):
            found[self._name(phase)] += elapsed_s
        if self.layers_s is not None:
            for name, layer_s in zip(LAYER_NAMES, self.layers_s.tolist(), strict=True):
                found[name] += layer_s
                found[NAMES["model"]] -= layer_s
        return found

    def _name(self, phase: str) -> str:
        if self.layers_s is None and phase in ("model", "runner"):
            return "model: all of it (op by op)"
        return NAMES[phase]


def decode_requests(batch: int, context: int, num_steps: int) -> list[BenchRequest]:
    """Return requests that share nothing and still decode after `num_steps` steps."""
    rng = random.Random(0)
    # The first ones decode while the prompts of the last are computed.
    num_tokens = num_steps + 8 + 2 * batch * context // MAX_NUM_BATCHED_TOKENS
    return [
        BenchRequest([rng.randrange(100, 8192) for _ in range(context)], num_tokens)
        for _ in range(batch)
    ]


def profile(
    engine: Engine, requests: Sequence[BenchRequest], temperature: float, num_steps: int | None
) -> list[dict[str, float]]:
    """Measure each step's seconds by phase.

    Args:
        engine: An engine without requests.
        requests: The requests, all added at once.
        temperature: Temperature of all requests; 0 is greedy.
        num_steps: Steps to measure once every request decodes; None measures all steps.
    """
    profiler = StepProfiler(engine)
    for number, request in enumerate(requests):
        params = SamplingParams(
            temperature=temperature, max_tokens=request.max_tokens, ignore_eos=True
        )
        engine.add_request(f"request {number}", request.prompt, params)
    if num_steps is None:
        steps = []
        while engine.has_unfinished():
            steps.append(profiler.step())
        return steps
    while len(engine.step()) < len(requests):
        if engine.load().num_running + engine.load().num_waiting < len(requests):
            sys.exit("the KV cache does not hold them all: take fewer requests, or shorter ones")
    return [profiler.step() for _ in range(num_steps)]


def report(steps: Sequence[dict[str, float]]) -> str:
    """Format the median and share of each phase as Markdown."""
    totals = [sum(step.values()) for step in steps]
    lines = ["| phase | us a step, median | share of the time |", "|---|---|---|"]
    names = [name for name in ORDER if any(name in step for step in steps)]
    names += sorted({name for step in steps for name in step} - set(names))
    for name in names:
        median_us = 1e6 * statistics.median(step.get(name, 0.0) for step in steps)
        share = sum(step.get(name, 0.0) for step in steps) / sum(totals)
        lines.append(f"| {name} | {median_us:,.0f} | {share:.1%} |")
    lines.append(f"| **step** | {1e6 * statistics.median(totals):,.0f} | 100% |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workload", nargs="?", default="decode", choices=("decode", *WORKLOAD_NAMES)
    )
    parser.add_argument("--batch", type=int, default=64, help="requests that decode (64)")
    parser.add_argument("--context", type=int, default=256, help="tokens of each (256)")
    parser.add_argument("--steps", type=int, default=50, help="steps of decode (50)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--model", default="demo", help="as the engine takes it (demo)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=("int8",))
    options = parser.parse_args()
    is_decode = options.workload == "decode"
    if is_decode:
        requests = decode_requests(options.batch, options.context, options.steps)
    else:
        requests = list(make_workload(options.workload, vocab_size=8192).requests)
    engine = Engine(
        EngineConfig(
            model=options.model,
            dtype=options.dtype,
            device="cpu",
            quantization=options.quantization,
            max_model_len=max(len(each.prompt) + each.max_tokens for each in requests),
            max_num_seqs=options.batch,
            max_num_batched_tokens=max(MAX_NUM_BATCHED_TOKENS, options.batch),
        )
    )
    load = ForeignLoad()
    steps = profile(engine, requests, options.temperature, options.steps if is_decode else None)
    what = f"{options.batch} requests of {options.context} tokens" if is_decode else "all steps"
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{options.workload}, {what}: {len(steps)} steps, temperature {options.temperature},")
    print(f"{torch.get_num_threads()} threads; CPUs used by others {load.mean_cpus() or 0:.2f}")
    print(report(steps))


if __name__ == "__main__":
    main()
