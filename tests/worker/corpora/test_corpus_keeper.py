"""A worker reads the corpora of the jobs that it claims, and its engine has what Redis has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis

from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.corpora import Corpus
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim, JobState, TokenWrite
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.corpora.corpus_keeper import CorpusKeeper, engine_name
from batchmill.worker.corpora.corpus_name import CorpusMode, corpus_of
from batchmill.worker.engine_host.messages import SetDraftCorpus

ROWS = Corpus("acme", "a1", 3)


@dataclass
class Bench:
    """A keeper, a clock, and what the engine would have."""

    store: JobStore
    now: float = 0.0
    messages: list[SetDraftCorpus] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeper = CorpusKeeper(self.store, self.messages.append, clock=lambda: self.now)

    def learn(self, job_id: str, tokens: list[int], corpus: Corpus = ROWS) -> None:
        self.store.submit(
            NewJob(
                job_id=job_id,
                model="demo",
                queue=keys.queue_name("demo", "normal"),
                document="{}",
                result_ttl_ms=60_000,
                tenant=corpus.tenant,
            )
        )
        claim = self.store.claim(job_id, owner="w", lease_ms=60_000, identity="m")
        assert isinstance(claim, Claim)
        write = TokenWrite(job_id, claim.fence, 0, tokens, identity="m")
        call = job_calls.complete(write, JobState.COMPLETED, "{}", None, corpus=corpus)
        self.store.run(call)

    def look(self, after_s: float = 0.0) -> dict[str, list[list[int]]]:
        """Let time pass and look; return what was sent."""
        self.now += after_s
        self.messages.clear()
        self.keeper.look()
        return {each.name: sorted(map(list, each.outputs)) for each in self.messages}


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    with Redis.from_url(redis_url) as client:
        yield Bench(JobStore(client))


def test_a_corpus_is_read_when_a_job_of_it_is_claimed_and_sent_when_it_changes(
    bench: Bench,
) -> None:
    bench.learn("a", [1, 2])
    assert bench.look() == {}
    assert bench.keeper.note_claim(ROWS)
    assert bench.look() == {"acme:a1": [[1, 2]]}
    bench.learn("b", [3])
    assert bench.look() == {}
    assert bench.look(after_s=1.5) == {"acme:a1": [[1, 2], [3]]}
    assert bench.look(after_s=1.5) == {}
    bench.keeper.note_new_engine()
    assert bench.look() == {"acme:a1": [[1, 2], [3]]}


def test_while_no_job_has_a_corpus_nothing_is_read(bench: Bench) -> None:
    before = bench.store.client.info("stats")["total_commands_processed"]
    for _ in range(5):
        bench.look(after_s=30)
    assert bench.store.client.info("stats")["total_commands_processed"] == before + 1


def test_a_forgotten_output_leaves_the_engine_at_the_next_read(bench: Bench) -> None:
    bench.learn("a", [1, 2])
    bench.learn("b", [3])
    bench.keeper.note_claim(ROWS)
    bench.look()
    bench.store.run(job_calls.forget("a"))
    assert bench.look(after_s=1.5) == {"acme:a1": [[3]]}
    bench.store.run(job_calls.forget("b"))
    assert bench.look(after_s=1.5) == {"acme:a1": []}


def test_an_unused_corpus_is_dropped(bench: Bench) -> None:
    bench.learn("a", [1, 2])
    bench.keeper.note_claim(ROWS)
    bench.look()
    assert len(bench.keeper) == 1
    assert bench.look(after_s=61) == {"acme:a1": []}
    assert len(bench.keeper) == 0
    assert bench.look(after_s=61) == {}


def test_so_many_corpora_are_kept_and_no_more(bench: Bench) -> None:
    for number in range(40):
        bench.keeper.note_claim(Corpus("acme", f"{number:x}", 3))
        bench.now += 0.001
    found = bench.look()
    assert len(bench.keeper) == 32
    assert [f"acme:{number:x}" for number in range(8)] == list(found)


def test_a_full_corpus_learns_from_few_jobs_and_has_the_newest_tokens(bench: Bench) -> None:
    large = Corpus("acme", "b2", 2)
    for job_id, size in (("a", 100), ("b", 65_000), ("c", 600)):
        bench.learn(job_id, [7] * size, large)
    bench.keeper.note_claim(large)
    assert [list(map(len, each)) for each in bench.look().values()] == [[600]]
    many = Corpus("acme", "c3", 2)
    for job_id in ("d", "e"):
        bench.learn(job_id, [1], many)
    bench.keeper.note_claim(many)
    bench.look()
    assert 0 < sum(bench.keeper.note_claim(many) for _ in range(800)) < 400


def test_outputs_beyond_the_most_tokens_are_not_read_again_and_again(bench: Bench) -> None:
    long = Corpus("acme", "d4", 256)
    for number in range(70):
        bench.learn(f"j{number}", [7] * 4000, long)

    def num_outputs_read(after_s: float) -> int:
        bench.store.client.config_resetstat()
        bench.look(after_s)
        return int(
            bench.store.client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]
        )

    bench.keeper.note_claim(long)
    assert num_outputs_read(0) <= 32
    assert num_outputs_read(1.5) == 0
    assert num_outputs_read(10) <= 32
    assert 0 < sum(bench.keeper.note_claim(long) for _ in range(800)) < 400


def claim(prefix: str = "", **changes: Any) -> Claim:
    fields: dict[str, Any] = {"prefix": prefix, "identity": "model-1", **changes}
    return Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0, **fields)


def name_of(mode: CorpusMode, prefix: str = "", about: Claim | None = None, **job: Any) -> Any:
    corpus = corpus_of(about or claim(prefix), parse_job({"prompt": "x", **job}), mode, 9)
    return None if corpus is None else engine_name(corpus)


@pytest.mark.parametrize(
    ("mode", "prefix", "job", "has_corpus"),
    [
        ("off", "p", {"draft_corpus": "rows"}, False),
        ("named", "p", {"draft_corpus": "rows"}, True),
        ("named", "p", {}, False),
        ("auto", "p", {}, True),
        ("auto", "", {}, False),
        ("auto", "", {"draft_corpus": "rows"}, True),
        ("auto", "p", {"draft_corpus": "off"}, False),
        ("named", "p", {"draft_corpus": "off"}, False),
        ("auto", "p", {"beam_search": {"beam_width": 2}, "max_tokens": 4}, False),
    ],
)
def test_the_operator_and_the_job_decide_whether_it_has_a_corpus(
    mode: CorpusMode, prefix: str, job: dict[str, Any], has_corpus: bool
) -> None:
    assert (name_of(mode, prefix, **job) is not None) is has_corpus


def test_what_makes_outputs_differ_makes_another_corpus() -> None:
    def name(about: Claim | None = None, **job: Any) -> Any:
        return name_of("auto", "p", about, **job)

    names = [
        name(),
        name(draft_corpus="rows"),
        name(draft_corpus="columns"),
        name(draft_corpus="p"),
        name(tenant="acme"),
        name(tenant="acme", draft_corpus="rows"),
        name(cache_salt="user-1", draft_corpus="rows"),
        name(claim("q")),
        name(claim("p", identity="model-2")),
        name(claim("p", lora="d1")),
        name(claim("p", steering="d1")),
    ]
    assert len(set(names)) == len(names)
    assert name(priority="high", seed=4) == name()
