"""Workers that ask for jobs, and jobs that are handed to one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import spread as calls
from batchmill.producer.protocol.calls.spread import Origin, Want
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import HeldJob, JobState, ReleaseStatus
from batchmill.producer.store.pauses import Pauses

from ...support.session_connections import SessionConnections
from ...support.worker_info import worker_info

QUEUE = keys.queue_name("demo", "normal")
TAKER = keys.new_session("taker@host")
GIVER = Want("giver@host.0123456789abcdef", 0, 8)


@pytest.fixture
def sessions(bench: Any) -> Iterator[SessionConnections]:
    """The taker is connected."""
    connections = SessionConnections(bench.redis)
    connections.connect(TAKER)
    yield connections
    connections.close()


def ask(bench: Any, session: str = TAKER, places: int = 8, **changes: Any) -> bool:
    """Ask for jobs as a worker of the model does."""
    fields = {"num_jobs": 0, "tokens_per_s": 0.0} | changes
    given = {name: fields.pop(name) for name in ("identity", "ttl_ms") if name in fields}
    options: dict[str, Any] = {"identity": "model 1", "ttl_ms": 60_000} | given
    wish = Want(session, places, **fields)
    asked: bool = bench.store.run(
        calls.want(wish, model="demo", queues=keys.queue_names("demo"), **options)
    )
    return asked


def find(
    bench: Any, giver: Want = GIVER, identity: str = "model 1", least_speedup: float = 1.0
) -> Want | None:
    origin = Origin(QUEUE, "default")
    found = find_for(bench, origin, giver=giver, identity=identity, least_speedup=least_speedup)
    return None if found is None else found[0]


def find_for(
    bench: Any,
    *origins: Origin,
    giver: Want = GIVER,
    identity: str = "model 1",
    least_speedup: float = 1.0,
) -> tuple[Want, frozenset[Origin]] | None:
    """Look for a wish, for jobs of these queues and tenants."""
    call = calls.take_want(
        giver, model="demo", identity=identity, origins=origins, least_speedup=least_speedup
    )
    found: tuple[Want, frozenset[Origin]] | None = bench.store.run(call)
    return found


def hand_over(bench: Any, job_id: str, session: str = TAKER) -> ReleaseStatus:
    held = [HeldJob(job_id, bench.fence(job_id))]
    [status] = bench.store.run(job_calls.hand_over(held, session))
    assert isinstance(status, ReleaseStatus)
    return status


def handed(bench: Any) -> list[str]:
    messages = bench.redis.lrange(keys.handed(TAKER), 0, -1)
    return [json.loads(message)["headers"]["id"] for message in messages]


def started(bench: Any, job_id: str, **changes: Any) -> None:
    """Submit a job and claim it, as a worker that pops its announcement does."""
    bench.submit(job_id, **changes)
    bench.take_announcement()
    bench.claim(job_id)


def test_a_wish_is_found_once(bench: Any) -> None:
    assert ask(bench, num_jobs=2, tokens_per_s=12.5)
    assert find(bench) == Want(TAKER, 8, 2, 12.5)
    assert find(bench) is None


@pytest.mark.parametrize(
    ("wish", "giver"),
    [
        ({"num_jobs": 4}, GIVER),  # half as many is not less than half
        ({"session": GIVER.session}, GIVER),
        ({"identity": "another"}, GIVER),
        ({"ttl_ms": 0}, GIVER),
        ({"num_jobs": 1, "tokens_per_s": 10.0}, Want(GIVER.session, 0, 8, 40.0)),
    ],
    ids=["load", "own", "identity", "time", "speed"],
)
def test_a_wish_that_would_not_help_is_not_found(
    bench: Any, wish: dict[str, Any], giver: Want
) -> None:
    ask(bench, **wish)
    assert find(bench, giver) is None


def test_a_fast_worker_gets_from_a_slow_one_with_as_many_jobs(bench: Any) -> None:
    ask(bench, num_jobs=8, tokens_per_s=40.0)
    assert find(bench, Want(GIVER.session, 0, 8, 10.0)) is not None


def test_jobs_that_need_a_faster_worker_leave_the_wish_of_a_slower_one(bench: Any) -> None:
    giver = Want(GIVER.session, 0, 8, 10.0)
    ask(bench, tokens_per_s=15.0)
    assert find(bench, giver, least_speedup=2.0) is None
    assert find(bench, giver, least_speedup=1.5) is not None
    ask(bench, tokens_per_s=5.0)
    assert find(bench, giver) is not None
    ask(bench)  # its speed is not known, so it counts as equally fast
    assert find(bench, giver, least_speedup=1.1) is None
    assert find(bench, giver) is not None


def test_a_wish_to_which_no_job_is_due_is_left_for_others(bench: Any) -> None:
    ask(bench, tokens_per_s=10.0)
    assert find(bench, Want("fast@host.0123456789abcdef", 0, 2, 100.0)) is None
    assert find(bench, Want("alone@host.0123456789abcdef", 0, 1, 10.0)) is None
    assert find(bench, Want(GIVER.session, 0, 2, 10.0)) is not None


def test_no_worker_asks_while_jobs_wait_in_its_queues(bench: Any) -> None:
    ask(bench)
    bench.submit("j")
    assert not ask(bench)
    assert find(bench) is None


@pytest.mark.parametrize("kind", [PauseKind.QUEUE, PauseKind.TENANT])
def test_what_is_paused_does_not_move_and_holds_back_nothing_else(
    bench: Any, kind: PauseKind
) -> None:
    """A running job goes on through a pause; one that was given back would wait for its end."""
    ask(bench)
    paused, other = Origin(QUEUE, "acme"), Origin(keys.queue_name("demo", "low"), "default")
    name = QUEUE if kind is PauseKind.QUEUE else "acme"
    Pauses(bench.store).pause(kind, name, by="a test", reason="")
    assert find_for(bench, paused) is None
    found = find_for(bench, paused, other)
    assert found is not None
    assert found[1] == {other}
    ask(bench)
    Pauses(bench.store).resume(kind, name)
    found = find_for(bench, paused, other)
    assert found is not None
    assert found[1] == {paused, other}


def test_a_handed_job_is_announced_to_its_taker_only(
    bench: Any, sessions: SessionConnections
) -> None:
    started(bench, "j")
    fence = bench.fence("j")

    assert hand_over(bench, "j") is ReleaseStatus.REQUEUED

    assert handed(bench) == ["j"]
    assert bench.announced() == []
    assert not ask(bench), "it has work to take"
    claim = bench.claim("j")
    assert claim.fence != fence
    assert (claim.attempts, [a.cause for a in claim.history]) == (2, ["moved"])
    record = bench.store.load("j")
    assert (record.suspect, record.crashes) == (0, 0)
    assert bench.store.run(job_calls.hand_over([HeldJob("j", fence)], TAKER)) == [
        ReleaseStatus.FENCED
    ]


def test_what_is_handed_to_a_worker_that_is_gone_is_for_all(bench: Any) -> None:
    started(bench, "j")
    assert hand_over(bench, "j") is ReleaseStatus.REQUEUED
    assert (bench.announced(), handed(bench)) == (["j"], [])


def test_a_worker_that_stops_asking_lets_others_have_what_it_was_given(
    bench: Any, sessions: SessionConnections
) -> None:
    for job_id in ("a", "b", "cancelled"):
        started(bench, job_id)
        hand_over(bench, job_id)
    bench.store.cancel("cancelled")

    assert not ask(bench, places=0)

    assert sorted(bench.announced()) == ["a", "b"]
    assert handed(bench) == []


def test_handed_jobs_of_a_killed_worker_are_announced_to_all(
    bench: Any, sessions: SessionConnections
) -> None:
    observer = keys.new_session("observer@host")
    sessions.connect(observer)
    bench.store.announce_worker(worker_info("taker@host", session=TAKER), timeout_ms=0)
    started(bench, "j")
    hand_over(bench, "j")
    bench.redis.zadd(keys.queued(QUEUE), {"j": 1}, xx=True)  # announced longer than a second ago
    sessions.disconnect(TAKER)

    lost = bench.store.end_lost_sessions(observer, connected_ms=60_000)

    assert lost.num_reannounced == 1
    assert bench.announced() == ["j"]


def test_a_cancelled_job_ends_instead_of_moving(bench: Any, sessions: SessionConnections) -> None:
    started(bench, "j")
    bench.store.cancel("j")
    assert hand_over(bench, "j") is ReleaseStatus.CANCELLED
    assert bench.state("j") == JobState.CANCELLED


@pytest.mark.parametrize("key", [keys.wants("demo"), keys.handed(TAKER)], ids=["wants", "handed"])
def test_a_foreign_key_keeps_no_worker_from_asking(bench: Any, key: str) -> None:
    bench.redis.xadd(key, {"not": "ours"})
    assert ask(bench)
    assert find(bench) is not None


def test_forged_wishes_are_dropped(bench: Any) -> None:
    forged = ["", "x", "9e999 1 1 1 model 1", "99999999999999 1 1 1.2.3 model 1"]
    bench.redis.hset(keys.wants("demo"), mapping={str(i): text for i, text in enumerate(forged)})
    found = [find(bench) for _ in forged]
    assert [want.tokens_per_s for want in found if want is not None] in ([0.0], [])
