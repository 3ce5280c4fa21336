"""Measures rows of one template with and without drafts: `python tests/bench/draft_corpus.py`.

Uses the demo model on the CPU. First it generates the outputs of 200 rows of one template: the
corpus. Then it answers other rows of the same template, 1, 8 and 32 at a time, without draft
tokens, with prompt lookup, and with the corpus (and both). The engines take turns within each
round. The script prints the steps per token of a row, the output tokens per second (medians over
the rounds), the median ratio to no drafts within a round, the accepted draft tokens, and whether
the outputs are the same.

`--learned N` builds the corpus of N rows; `--temperature 0` is greedy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, field, replace

import torch

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel, load_model

CORPUS = "rows"
THINGS = ("kettle", "lamp", "bicycle", "coat", "sack of rice", "phone", "chair", "umbrella")
PLACES = ("Leeds", "Graz", "Porto", "Turku", "Ghent", "Brno", "Lyon")
PROBLEMS = ("arrived broken", "is the wrong size", "never arrived", "was charged twice")
TEMPLATE = """Letters of customers of a shop, and its answers.

Letter: I bought a sofa in Bern. It has a hole. My order has the number 4711.
Answer: Dear customer, thank you for your letter about the sofa. We are sorry that it has a hole. \
We have looked up your order 4711 in our shop in Bern. We will send you a new sofa within five \
days, and you need not send the old one back. Yours sincerely, the team of the mill shop.

Letter: I bought a clock in Oslo. It does not run. My order has the number 2093.
Answer: Dear customer, thank you for your letter about the clock. We are sorry that it does not \
run. We have looked up your order 2093 in our shop in Oslo. Please send it back, and you will get \
your money within ten days. Yours sincerely, the team of the mill shop.

Letter: I bought a {thing} in {place}. It {problem}. My order has the number {number}.
Answer:"""
#: Name, looked-up tokens, whether the corpus is used.
ENGINES = (
    ("no drafts", 0, False),
    ("prompt lookup", 6, False),
    ("corpus", 0, True),
    ("corpus + lookup", 6, True),
)


@dataclass
class Case:
    """The runs of one engine with one batch size."""

    engine: Engine
    corpus: str | None
    tokens_per_s: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    num_steps: int = 0
    num_drafts: int = 0
    num_accepted: int = 0

    def run(self, prompts: list[list[int]], params: SamplingParams) -> None:
        """Generate once for all prompts, together."""
        before, started_at_s = self.engine.stats(), time.perf_counter()
        self.token_ids = generate(self.engine, prompts, params, self.corpus)
        elapsed_s = time.perf_counter() - started_at_s
        after = self.engine.stats()
        self.tokens_per_s.append(sum(map(len, self.token_ids)) / elapsed_s)
        self.num_steps = after.num_steps - before.num_steps
        self.num_drafts = after.num_draft_tokens - before.num_draft_tokens
        self.num_accepted = after.num_accepted_tokens - before.num_accepted_tokens


def generate(
    engine: Engine, prompts: list[list[int]], params: SamplingParams, corpus: str | None
) -> list[list[int]]:
    """Return the output of each prompt."""
    for number, prompt in enumerate(prompts):
        engine.add_request(f"{number}", prompt, params, draft_corpus=corpus)
    found: dict[str, list[int]] = {}
    while engine.has_unfinished():
        found |= {each.request_id: each.token_ids for each in engine.step() if each.finished}
    return [found[f"{number}"] for number in range(len(prompts))]


def make_engine(loaded: LoadedModel, dtype: str, num_looked_up: int) -> Engine:
    """Make an engine that looks up tokens for any number of rows."""
    config = EngineConfig(
        model="demo",
        dtype=dtype,
        device="cpu",
        kv_cache_bytes=1 << 30,
        num_speculative_tokens=num_looked_up,
        speculative_max_num_seqs=64 if num_looked_up else 4,
    )
    return Engine(config, loaded=loaded)


def prompts_of(engine: Engine, rows: range) -> list[list[int]]:
    """Return rows of the template."""
    texts = [
        TEMPLATE.format(
            thing=THINGS[row % len(THINGS)],
            place=PLACES[row % len(PLACES)],
            problem=PROBLEMS[row % len(PROBLEMS)],
            number=1000 + 37 * row,
        )
        for row in rows
    ]
    return [engine.tokenizer.encode(text) for text in texts]


def measure(
    cases: dict[str, Case], prompts: list[list[int]], params: SamplingParams, rounds: int
) -> None:
    """Let the engines take turns, and print a row for each."""
    for case in cases.values():
        # It fills the prefix cache.
        generate(case.engine, prompts, replace(params, max_tokens=1), None)
    for _ in range(rounds):
        for case in cases.values():
            case.run(prompts, params)
    plain, batch = cases["no drafts"], len(prompts)
    for name, case in cases.items():
        pairs = zip(case.tokens_per_s, plain.tokens_per_s, strict=True)
        ratio = statistics.median(with_it / without for with_it, without in pairs)
        num_tokens = sum(map(len, case.token_ids))
        print(
            f"batch {batch:2}  {name:16} {case.num_steps * batch / num_tokens:.2f} steps per "
            f"token of a row, {statistics.median(case.tokens_per_s):7.1f} tok/s, {ratio:.2f}x, "
            f"{case.num_accepted} of {case.num_drafts} drafts accepted, "
            f"{'same' if case.token_ids == plain.token_ids else 'other'} output",
            flush=True,
        )


def main() -> None:
    """Measure the batch sizes and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--learned", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    loaded = load_model("demo", dtype=arguments.dtype, device="cpu")
    engines = [make_engine(loaded, arguments.dtype, drafts) for _, drafts, _ in ENGINES]
    params = SamplingParams(
        temperature=arguments.temperature, seed=3, max_tokens=arguments.tokens, stop=["\n"]
    )
    learned = generate(
        engines[0], prompts_of(engines[0], range(1000, 1000 + arguments.learned)), params, None
    )
    for engine in engines:
        engine.set_draft_corpus(CORPUS, learned)
    print(
        f"{torch.get_num_threads()} threads, {engines[0].dtype}, load {os.getloadavg()[0]:.1f}, "
        f"temperature {arguments.temperature}, corpus of {sum(map(len, learned))} tokens",
        flush=True,
    )
    for batch in arguments.batch:
        cases = {
            name: Case(engine, CORPUS if uses_corpus else None)
            for engine, (name, _, uses_corpus) in zip(engines, ENGINES, strict=True)
        }
        measure(cases, prompts_of(engines[0], range(batch)), params, arguments.rounds)


if __name__ == "__main__":
    main()
