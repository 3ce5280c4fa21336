"""Measures schema-bound rows with and without draft tokens: `python tests/bench/schema_drafts.py`.

Uses the demo model on the CPU. Rows of one template are answered under one JSON schema, 1, 8 and 32
at a time. The engines (no drafts, forced tokens, forced tokens and prompt lookup) take turns within
each round. The script prints the steps per token, the output tokens per second (medians over the
rounds), the median ratios to no drafts within a round (of tokens per second, and of tokens per
second of processor time, which other programs disturb less), the accepted draft tokens, and whether
the outputs are the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel, load_model

SCHEMA = {
    "type": "object",
    "properties": {
        "product_name": {"type": "string", "maxLength": 24},
        "category": {"enum": ["electronics", "household", "clothing", "groceries"]},
        "price_in_cents": {"type": "integer", "minimum": 1, "maximum": 99999},
        "is_available": {"type": "boolean"},
        "short_description": {"type": "string", "maxLength": 60},
    },
    "required": [
        *("product_name", "category", "price_in_cents", "is_available", "short_description"),
    ],
    "additionalProperties": False,
}
THINGS = ["kettle", "lamp", "bicycle", "coat", "rice", "phone", "chair", "umbrella"]
TIMES = ("time_s", "cpu_s")
#: Name, forced tokens, looked-up tokens.
ENGINES = (("no drafts", 0, 0), ("forced", 8, 0), ("forced + lookup", 8, 6))


def make_engine(loaded: LoadedModel, dtype: str, num_forced: int, num_looked_up: int) -> Engine:
    """Make an engine that looks up tokens for any number of rows."""
    return Engine(
        EngineConfig(
            model="demo",
            dtype=dtype,
            device="cpu",
            kv_cache_bytes=1 << 29,
            num_forced_tokens=num_forced,
            num_speculative_tokens=num_looked_up,
            speculative_max_num_seqs=64,
        ),
        loaded=loaded,
    )


def prompts_of(engine: Engine, num_rows: int) -> list[list[int]]:
    """Return the rows of one template as chats."""
    texts = [
        f"Describe product {row}, a {THINGS[row % len(THINGS)]}, as JSON with the keys "
        f"{', '.join(SCHEMA['properties'])}."  # type: ignore[arg-type]
        for row in range(num_rows)
    ]
    return [engine.render_chat([{"role": "user", "content": text}]) for text in texts]


def measure(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> dict[str, Any]:
    """Generate once; return steps, tokens, seconds, drafts and the output."""
    before, started_at_s = engine.stats(), time.perf_counter()
    cpu_at_s = time.process_time()
    outputs = engine.generate(prompts, params)
    elapsed_s, cpu_s = time.perf_counter() - started_at_s, time.process_time() - cpu_at_s
    after = engine.stats()
    return {
        "tokens": sum(len(each.token_ids) for each in outputs),
        "steps": after.num_steps - before.num_steps,
        "time_s": elapsed_s,
        "cpu_s": cpu_s,
        "drafts": after.num_draft_tokens - before.num_draft_tokens,
        "accepted": after.num_accepted_tokens - before.num_accepted_tokens,
        "output": [each.token_ids for each in outputs],
    }


def ratio_to(plain: list[dict[str, Any]], rounds: list[dict[str, Any]], time: str) -> float:
    """Return the median, over the rounds, of tokens per second over those without drafts."""
    ratios: list[float] = [
        (each["tokens"] / each[time]) / (without["tokens"] / without[time])
        for without, each in zip(plain, rounds, strict=True)
    ]
    return statistics.median(ratios)


def main() -> None:
    """Measure every batch size and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--compact", action="store_true", help="no blanks between the parts")
    arguments = parser.parse_args()
    loaded = load_model("demo", dtype=arguments.dtype, device="cpu")
    engines = [(name, make_engine(loaded, arguments.dtype, *numbers)) for name, *numbers in ENGINES]
    structure = {"json": SCHEMA, "disable_any_whitespace": arguments.compact}
    params = SamplingParams(temperature=0.3, seed=3, max_tokens=150, structured_outputs=structure)
    print(
        f"{torch.get_num_threads()} threads, {arguments.dtype}, load {os.getloadavg()[0]:.1f}, "
        f"{'compact' if arguments.compact else 'blanks allowed'}"
    )
    for batch in arguments.batch:
        prompts = prompts_of(engines[0][1], batch)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in engines}
        for number in range(arguments.rounds + 1):
            for name, engine in engines:
                found = measure(engine, prompts, params)
                if number:  # the first compiles the grammar and fills the prefix cache
                    runs[name].append(found)
        for name, rounds in runs.items():
            speed = statistics.median(each["tokens"] / each["time_s"] for each in rounds)
            ratio, cpu_ratio = (ratio_to(runs["no drafts"], rounds, of) for of in TIMES)
            last = rounds[-1]
            same = last["output"] == runs["no drafts"][-1]["output"]
            print(
                f"batch {batch:2}  {name:16} {last['steps'] * batch / last['tokens']:.2f} steps "
                f"per token of a row, {speed:7.1f} tok/s, {ratio:.2f}x, {cpu_ratio:.2f}x of CPU, "
                f"{last['accepted']} of {last['drafts']} drafts accepted, "
                f"{'same' if same else 'other'} output",
                flush=True,
            )


if __name__ == "__main__":
    main()
