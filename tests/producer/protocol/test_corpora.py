"""Corpora: which finished jobs others may draft tokens from, kept in bounded space."""

from __future__ import annotations

import re
from typing import Any

import pytest

from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.corpora import Corpus, corpus_jobs, corpus_outputs
from batchmill.producer.protocol.replies import CompleteStatus, JobState, TokenWrite
from batchmill.producer.store.job_index import JobQuery, forget_where
from batchmill.producer.store.job_store import JobStore

from ..conftest import Bench

ROWS = Corpus("acme", "a1b2", 3)


def complete(
    bench: Bench,
    job_id: str,
    tokens: list[int],
    *,
    corpus: Corpus | None = ROWS,
    state: JobState = JobState.COMPLETED,
    **changes: Any,
) -> None:
    bench.submit(job_id, **{"tenant": "acme", **changes})
    claim = bench.claim(job_id)
    write = TokenWrite(job_id, claim.fence, 0, tokens, identity=claim.identity)
    error = None if state is JobState.COMPLETED else '{"code":"x","message":"y"}'
    call = job_calls.complete(write, state, "{}", error, corpus=corpus)
    assert bench.store.run(call) is CompleteStatus.OK


def outputs(bench: Bench, corpus: Corpus = ROWS) -> dict[str, list[int]]:
    ids = bench.store.read(corpus_jobs(corpus))
    return dict(zip(ids, bench.store.read(corpus_outputs(ids)), strict=True))


def corpus_keys(bench: Bench) -> list[str]:
    return sorted(name.decode() for name in bench.redis.scan_iter("batchmill:corp*"))


def test_a_corpus_has_the_outputs_of_its_newest_jobs(bench: Bench, check_keys: Any) -> None:
    for number in range(5):
        complete(bench, f"j{number}", [number, 7], result_ttl_ms=60_000 + number)
    assert outputs(bench) == {"j4": [4, 7], "j3": [3, 7], "j2": [2, 7]}
    assert bench.redis.hget(keys.job("j4"), "corpus") == b"a1b2"
    check_keys(bench.redis)


def test_a_job_without_a_corpus_and_one_that_failed_or_has_no_tokens_teach_nothing(
    bench: Bench,
) -> None:
    complete(bench, "without", [1], corpus=None)
    complete(bench, "failed", [1], state=JobState.FAILED)
    complete(bench, "empty", [])
    assert corpus_keys(bench) == []


def test_a_job_without_a_corpus_runs_no_further_command(bench: Bench) -> None:
    def num_commands(job_id: str, corpus: Corpus | None) -> int:
        bench.submit(job_id, tenant="acme")
        claim = bench.claim(job_id)
        write = TokenWrite(job_id, claim.fence, 0, [1], identity=claim.identity)
        before = bench.redis.info("commandstats")
        bench.store.run(job_calls.complete(write, JobState.COMPLETED, "{}", None, corpus=corpus))
        after = bench.redis.info("commandstats")
        names = re.compile("cmdstat_(z|h|p|g|s(?!cript)|d)")
        return sum(
            found["calls"] - before.get(name, {"calls": 0})["calls"]
            for name, found in after.items()
            if names.match(name)
        )

    num_commands("first", None)
    plain = num_commands("plain", None)
    assert num_commands("again", None) == plain
    assert plain < num_commands("learned", ROWS) <= plain + 12


@pytest.mark.parametrize("by", ["id", "tag", "tenant"])
def test_a_forgotten_job_leaves_its_corpus(bench: Bench, by: str) -> None:
    complete(bench, "kept", [1, 2])
    complete(bench, "gone", [3, 4], tags=("private",))
    if by == "id":
        bench.store.run(job_calls.forget("gone"))
        expected = {"kept": [1, 2]}
    else:
        query = JobQuery(tag="private") if by == "tag" else JobQuery(tenant="acme")
        bench.store.run(forget_where(query))
        expected = {"kept": [1, 2]} if by == "tag" else {}
    assert outputs(bench) == expected
    assert not bench.redis.exists(keys.tokens("gone"))
    assert bench.redis.zscore(keys.corpus("acme", "a1b2"), "gone") is None


def test_tenants_have_different_corpora(bench: Bench) -> None:
    complete(bench, "ours", [1])
    complete(bench, "theirs", [2], tenant="other")
    assert outputs(bench) == {"ours": [1]}
    assert outputs(bench, Corpus("other", "a1b2", 3)) == {"theirs": [2]}
    assert outputs(bench, Corpus("third", "a1b2", 3)) == {}


def test_an_expired_job_is_read_no_more(bench: Bench) -> None:
    complete(bench, "old", [1])
    complete(bench, "new", [2])
    bench.redis.zadd(keys.corpus("acme", "a1b2"), {"old": 1})
    assert outputs(bench) == {"new": [2]}
    assert 0 < bench.redis.pttl(keys.corpus("acme", "a1b2")) <= 60_000


def test_a_job_with_a_short_time_to_live_does_not_shorten_that_of_others(bench: Bench) -> None:
    complete(bench, "long", [1])
    complete(bench, "short", [2], result_ttl_ms=100)
    assert outputs(bench)["long"] == [1]
    for name in corpus_keys(bench):
        assert bench.redis.pttl(name) > 1000, name


def test_keys_of_another_type_keep_no_job_from_ending_or_being_forgotten(bench: Bench) -> None:
    names = (keys.corpus("acme", "a1b2"), keys.tenant_corpora("acme"), keys.CORPORA)
    for name in names:
        bench.redis.set(name, "foreign")
    complete(bench, "j", [1])
    assert outputs(bench) == {"j": [1]}
    for name in names:
        bench.redis.delete(name)
        bench.redis.set(name, "foreign")
    assert outputs(bench) == {}
    bench.store.run(job_calls.forget("j"))
    assert not bench.redis.exists(keys.job("j"))
    bench.redis.delete(*names)


def test_corpora_that_learned_longest_ago_are_dropped(bench: Bench) -> None:
    bench.redis.zadd(keys.tenant_corpora("acme"), {f"{number:x}": number for number in range(64)})
    bench.redis.zadd(keys.CORPORA, {f"acme:{number:x}": number for number in range(64)})
    bench.redis.zadd(keys.CORPORA, {f"t{number}:{number:x}": 100 + number for number in range(960)})
    bench.redis.zadd(keys.corpus("acme", "0"), {"x": 1})
    complete(bench, "j", [1])
    assert bench.redis.zcard(keys.tenant_corpora("acme")) == 64
    assert bench.redis.zcard(keys.CORPORA) == 1024
    assert not bench.redis.exists(keys.corpus("acme", "0"))
    complete(bench, "k", [1], tenant="new", corpus=Corpus("new", "ff", 3))
    assert bench.redis.zcard(keys.CORPORA) == 1024
    assert outputs(bench) == {"j": [1]}


def test_the_outputs_of_a_corpus_are_sealed_and_opened_with_the_key(bench: Bench) -> None:
    key = new_key("one")
    sealed = Bench(JobStore(bench.redis, key_ring=KeyRing([key])))
    complete(sealed, "j", [70_001, 70_002, 70_003])
    assert outputs(sealed) == {"j": [70_001, 70_002, 70_003]}
    other = Bench(JobStore(bench.redis, key_ring=KeyRing([new_key("two")])))
    assert outputs(other) == {"j": []}
    plain = (70_001).to_bytes(4, "little")
    for name in bench.redis.scan_iter("batchmill:*"):
        if bench.redis.type(name) == b"string":
            assert plain not in bench.redis.get(name)
