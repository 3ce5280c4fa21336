"""How often attribution names the document that holds the answer: run it as a script.

Each prompt has documents about invented people, one of which has the fact that the question asks
for. The answer is scored as the model itself would give it if it were right.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from batchmill.engine import Chat, Engine, EngineConfig, SamplingParams
from batchmill.engine.contract.explain import most_tokens
from batchmill.engine.plans.explain.attribution import attribution
from batchmill.engine.plans.plan import Plan, PlannedJob, PlanResult
from batchmill.engine.plans.runner import JobOptions, PlanRunner

_NAMES = [
    "Arlo",
    "Bryn",
    "Cato",
    "Dara",
    "Edda",
    "Finn",
    "Gale",
    "Hedy",
    "Ivor",
    "Juno",
    "Kian",
    "Lena",
    "Milo",
    "Nora",
    "Otto",
    "Pia",
]
_TOWNS = [
    "Oslo",
    "Lima",
    "Cairo",
    "Delhi",
    "Quito",
    "Turin",
    "Kyoto",
    "Accra",
    "Sofia",
    "Minsk",
    "Dakar",
    "Perth",
]
_JOBS = ["baker", "pilot", "nurse", "tailor", "farmer", "painter"]


@dataclass(frozen=True)
class Planted:
    """A chat, the place of the document that answers it, and the answer."""

    chat: Chat
    place: int
    answer: str


def planted(rng: random.Random, num_documents: int) -> Planted:
    """Return a chat with documents about people, and a question about one of them."""
    names = rng.sample(_NAMES, num_documents)
    towns = rng.sample(_TOWNS, num_documents)
    facts = [
        f"{name} is a {rng.choice(_JOBS)} who lives in {town}."
        for name, town in zip(names, towns, strict=True)
    ]
    place = rng.randrange(num_documents)
    question = f"In which town does {names[place]} live? Answer with the name of the town."
    text = "\n\n".join([*facts, question])
    return Planted(Chat(messages=[{"role": "user", "content": text}]), place, towns[place])


@dataclass(frozen=True)
class Found:
    """What attribution says of one prompt."""

    is_named_by_weight: bool
    is_named_by_drop: bool
    #: Falls of the answer's log probability without the 1, 3 and 5 parts of most weight, in nats.
    top_k_drop: Mapping[str, float]
    lds: float | None
    #: Requests, the tokens of their prompts with the answer, and those that were shared.
    num_requests: int
    num_tokens: int
    num_cached_tokens: int
    #: The most that `explain` charges for the prompt.
    most_tokens: int


def attribute(engine: Engine, prompt: Planted) -> Found:
    """Return what attribution says of the planted document's answer."""
    answer = engine.tokenizer.encode_plain(prompt.answer)
    job = PlannedJob(engine, {}, prompt.chat, SamplingParams())

    def plan() -> Plan:
        return PlanResult((yield from attribution(job, answer)) or {})

    runner = PlanRunner(engine)
    runner.add("job", plan(), JobOptions())
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
    (end,) = runner.take_ends()
    assert end.result is not None
    section, counts = end.result.section, end.counts
    segments = section["segments"]
    places = range(len(segments))
    by_weight = max(places, key=lambda place: segments[place]["weight"])
    by_drop = max(places, key=lambda place: segments[place]["leave_one_out"])
    num_prompt_tokens = len(engine.tokenizer.apply_chat_template(prompt.chat))
    return Found(
        by_weight == prompt.place,
        by_drop == prompt.place,
        section["top_k_drop"],
        section["lds"],
        counts.num_requests,
        counts.num_prompt_tokens + counts.num_output_tokens,
        counts.num_cached_tokens,
        most_tokens(["attribution"], num_prompt_tokens, len(answer)),
    )


def main() -> None:
    """Print the shares and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--documents", type=int, default=6)
    given = parser.parse_args()
    config = EngineConfig(model="demo", max_model_len=1024, kv_cache_bytes=1 << 28)
    engine, rng = Engine(config), random.Random(0)
    started = time.monotonic()
    found = [attribute(engine, planted(rng, given.documents)) for _ in range(given.prompts)]
    print(f"{given.prompts} prompts with {given.documents} documents each")
    print(f"named by weight: {sum(each.is_named_by_weight for each in found)}")
    print(f"named by leaving one out: {sum(each.is_named_by_drop for each in found)}")
    for k in found[0].top_k_drop:
        print(f"top-{k} drop: {mean(each.top_k_drop[k] for each in found):.2f} nats")
    print(f"LDS: {mean(each.lds for each in found if each.lds is not None):.2f}")
    for name in ("num_requests", "num_tokens", "num_cached_tokens", "most_tokens"):
        print(f"{name} per prompt: {mean(getattr(each, name) for each in found):.0f}")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
