"""How often attribution names the document that holds the answer: run it as a script.

Each prompt has documents about invented people, one of which has the fact that the question asks
for. The answer is scored as the model itself would give it if it were right.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass

from batchmill.engine import Chat, Engine, EngineConfig, SamplingParams
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


def named(engine: Engine, prompt: Planted) -> tuple[bool, bool, float | None]:
    """Return whether the largest weight, and the largest drop, are those of the document; LDS."""
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
    segments = end.result.section["segments"]
    places = range(len(segments))
    by_weight = max(places, key=lambda place: segments[place]["weight"])
    by_drop = max(places, key=lambda place: segments[place]["leave_one_out"])
    return by_weight == prompt.place, by_drop == prompt.place, end.result.section["lds"]


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--documents", type=int, default=6)
    arguments = parser.parse_args()
    config = EngineConfig(model="demo", max_model_len=1024, kv_cache_bytes=1 << 28)
    engine, rng = Engine(config), random.Random(0)
    started = time.monotonic()
    found = [named(engine, planted(rng, arguments.documents)) for _ in range(arguments.prompts)]
    scores = [lds for _, _, lds in found if lds is not None]
    print(
        f"{arguments.prompts} prompts with {arguments.documents} documents: weight names the "
        f"document in {sum(each[0] for each in found)}, leave-one-out in "
        f"{sum(each[1] for each in found)}; mean LDS {sum(scores) / len(scores):.2f}; "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
