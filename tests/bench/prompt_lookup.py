"""Measures decoding with and without prompt lookup: `python tests/bench/prompt_lookup.py [rounds]`.

Uses the demo model in bf16 on the CPU; `OMP_NUM_THREADS` sets the threads. There are two prompts,
each greedy and sampled: one whose output repeats it (copy a file with one word changed), and an
ordinary question. The engines take turns within each round. The script prints the decoded tokens
per second without and with draft tokens (medians over the rounds), their ratio, the accepted draft
tokens, and whether the output is the same. In bf16 two tokens whose scores are equal within
rounding may swap, because a step with draft tokens multiplies more rows at once. With `--dtype
float32` none does.

`--streams 4` runs four copies of each prompt at once, to measure `speculative_max_num_seqs`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel, load_model

NUM_TOKENS = 200
NUM_DRAFTS = 10
TEXT = Path(__file__).parents[2] / "engine" / "text" / "stop_strings.py"
QUESTIONS = {
    "copy": "Repeat this file exactly, with the class renamed to StopTexts:\n"
    + TEXT.read_text()[:1800],
    "ordinary": "Explain in detail how a bicycle stays upright when it moves.",
}
MODES = {
    "greedy": SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True),
    "sampled": SamplingParams(temperature=0.7, seed=3, max_tokens=NUM_TOKENS, ignore_eos=True),
}


@dataclass
class Case:
    """The runs of one workload with one engine."""

    engine: Engine
    tokens_per_s: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    num_drafts: int = 0
    num_accepted: int = 0

    def run(self, prompts: list[list[int]], params: SamplingParams) -> None:
        """Generate once; measure from the first token of the last stream."""
        before, started_at_s = self.engine.stats(), time.perf_counter()
        outputs = self.engine.generate(prompts, params)
        elapsed_s = time.perf_counter() - started_at_s
        after = self.engine.stats()
        prefill_s = max(each.metrics.first_token_s or 0.0 for each in outputs)
        num_decoded = sum(len(each.token_ids) - 1 for each in outputs)
        self.tokens_per_s.append(num_decoded / (elapsed_s - prefill_s))
        self.token_ids = [each.token_ids for each in outputs]
        self.num_drafts = after.num_draft_tokens - before.num_draft_tokens
        self.num_accepted = after.num_accepted_tokens - before.num_accepted_tokens


def make_engine(loaded: LoadedModel, dtype: str, num_speculative_tokens: int) -> Engine:
    """Make an engine that drafts tokens for any number of streams."""
    config = EngineConfig(
        model="demo",
        dtype=dtype,
        device="cpu",
        kv_cache_bytes=1 << 29,
        enable_prefix_caching=False,
        num_speculative_tokens=num_speculative_tokens,
        speculative_max_num_seqs=64,
    )
    return Engine(config, loaded=loaded)


def compare(
    engines: list[Engine], name: str, prompts: list[list[int]], params: SamplingParams, rounds: int
) -> None:
    """Run both engines in turn and print a row."""
    plain, speculative = cases = [Case(engine) for engine in engines]
    for _ in range(rounds):
        for case in cases:
            case.run(prompts, params)
    without, with_it = (statistics.median(case.tokens_per_s) for case in cases)
    same = "same" if plain.token_ids == speculative.token_ids else "other"
    print(
        f"{name:22} {without:8.1f} {with_it:8.1f} tok/s {with_it / without:6.2f}x, "
        f"{speculative.num_accepted} of {speculative.num_drafts} drafts accepted, {same} output",
        flush=True,
    )


def main() -> None:
    """Measure every case and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", type=int, default=1)
    arguments = parser.parse_args()
    loaded = load_model("demo", dtype=arguments.dtype, device="cpu")
    engines = [make_engine(loaded, arguments.dtype, drafts) for drafts in (0, NUM_DRAFTS)]
    print(
        f"{torch.get_num_threads()} threads, {arguments.dtype}, {arguments.streams} at once, "
        f"at most {NUM_DRAFTS} draft tokens"
    )
    prompts = {
        name: engines[0].render_chat([{"role": "user", "content": text}])
        for name, text in QUESTIONS.items()
    }
    for name, prompt in prompts.items():
        for mode, params in MODES.items():
            copies = [prompt] * arguments.streams
            compare(engines, f"{name}, {mode}", copies, params, arguments.rounds)


if __name__ == "__main__":
    main()
