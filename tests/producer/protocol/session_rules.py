"""Rules of the protocol's state machine on sessions: workers and deliverers that may be lost."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import rule
from redis import Redis

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import ReleaseStatus, WriteStatus

from ...support.session_connections import SessionConnections
from .protocol_invariants import ProtocolInvariants

#: Longer than a rule takes, and than any caller must have been connected.
LONG_MS = 3_600_000
OBSERVER = keys.new_session("observer")
#: Names of workers; each has one run at a time.
WORKERS = ("w1", "w2")

limits = st.sampled_from((1, 2, 500))
#: Whether a session is silent, has lost its connection, and is judged by one that may not judge.
signs = st.sampled_from(
    (
        *((True, True, False), (True, True, False), (True, False, False)),
        *((False, True, False), (False, False, False), (True, True, True)),
    )
)


class SessionRules(ProtocolInvariants):
    """Owns the connections of the sessions."""

    def __init__(self, url: str, check_keys: Callable[[Redis], None]) -> None:
        super().__init__(url, check_keys)
        self.connections = SessionConnections(self.redis)
        self.connections.connect(OBSERVER)
        self.sessions = {name: self.start_session(name) for name in WORKERS}

    def teardown(self) -> None:
        self.connections.close()
        super().teardown()

    def start_session(self, name: str) -> str:
        session = keys.new_session(name)
        self.connections.connect(session)
        assert self.store.note_session(session, timeout_ms=LONG_MS) == 1
        return session

    @rule(name=st.sampled_from(WORKERS), sign=signs, limit=limits)
    def judge_a_worker(self, name: str, sign: tuple[bool, bool, bool], limit: int) -> None:
        """Let a worker lose signs of life, judge it, and give the signs back if it lives."""
        is_silent, is_cut_off, is_judge_new = sign
        session = self.sessions[name]
        self.store.note_session(session, timeout_ms=0 if is_silent else LONG_MS)
        if is_cut_off:
            self.connections.disconnect(session)
        lost = []
        if is_silent and is_cut_off and not is_judge_new:
            held = [job for job in self.jobs.values() if job.is_held_by(session)]
            lost = [job.lose_lease() for job in held]

        self.judge(session, lost, limit, connected_ms=4999 if is_judge_new else LONG_MS)

        if lost or not self.redis.zscore(keys.SESSIONS, session):
            self.sessions[name] = self.start_session(name)
        elif is_cut_off:
            self.connections.connect(session)
        self.store.note_session(self.sessions[name], timeout_ms=LONG_MS)

    def judge(
        self, session: str, lost: list[ReleaseStatus], limit: int, *, connected_ms: int
    ) -> None:
        """Judge until less than a call's limit is put back, and compare the number."""
        num_jobs = 0
        while True:
            reply = self.store.end_lost_sessions(OBSERVER, connected_ms=connected_ms, limit=limit)
            num_jobs += reply.num_jobs
            assert reply.num_jobs <= limit
            assert reply.sessions in ((), (session,))
            if reply.num_jobs < limit:
                break
        assert num_jobs == len(lost)

    @rule()
    def lose_a_deliverer(self) -> None:
        """Its events go to another one at once, and what it writes late is refused."""
        session = self.start_session("deliverer")
        taken = self.store.outbox_claim(owner="d", limit=500, lease_ms=LONG_MS, session=session)
        assert self.store.outbox_claim(owner="e", limit=500, lease_ms=LONG_MS) == []
        self.store.note_session(session, timeout_ms=0)
        self.connections.disconnect(session)

        lost = self.store.end_lost_sessions(OBSERVER, connected_ms=LONG_MS)

        assert (lost.num_jobs, lost.num_released) == (0, len(taken))
        again = self.store.outbox_claim(owner="e", limit=500, lease_ms=LONG_MS)
        assert {entry.event_id for entry in again} == {entry.event_id for entry in taken}
        for claims, status in ((taken, WriteStatus.FENCED), (again, WriteStatus.OK)):
            for entry in claims:
                assert status is self.store.outbox_settle(
                    entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
                )
        self.delivered |= {entry.event_id for entry in again}
