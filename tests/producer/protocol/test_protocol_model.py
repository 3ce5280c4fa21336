"""A model of the protocol, checked state by state.

A breadth-first search over everything that can happen to one job with two workers and a
deliverer: its delay and its wait behind a neighbour that holds the only place in the window, lost
and duplicated messages, a worker killed at any point, a lease that runs out although its worker
lives, lost replies, a cancellation at any time, a deliverer killed between the POST and the
settling. Every state must have at most one end, no token computed on another stream than the one
it was appended to, and one webhook id. From every state the delivery of the webhook must be
reachable, and from every state in which the job waits, a claim.

The search is worth only what it would catch, so five mutants of the protocol must fail: without the
fence check, without the sweep, with the webhook event outside the completing transaction, without
announcing the next job when a place is freed, and without the end of delays.

The bounds: three claims, two messages, two tokens, one neighbour. `test_protocol_machine.py` checks
the real scripts by the same rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

MAX_FENCE = 3
MAX_MESSAGES = 2
NUM_TOKENS = 2

#: A token is the fence of the claim that computed it, so that two streams differ.
Tokens = tuple[int, ...]


class Worker(NamedTuple):
    """The state of a worker process; an idle one has the defaults."""

    has_message: bool = False
    fence: int = 0  # 0 = idle
    saved: int = 0  # tokens it knows to be stored
    tokens: Tokens = ()
    must_stop: bool = False
    owes_event: bool = False  # only in the mutant that writes the event separately


class World(NamedTuple):
    """One state of the whole system."""

    state: str = "queued"
    place: str = "delayed"  # delayed, waiting, announced: of a queued job
    neighbour: str = "announced"  # announced, lost, gone: of another job, first in the window
    fence: int = 0
    lease_is_live: bool = False
    cancel_requested: bool = False
    tokens: Tokens = ()
    messages: int = 0
    event: str = "none"  # none, pending, delivered
    event_fence: int = 0
    deliverer: int = 0  # the event fence it holds; 0 = idle
    has_posted: bool = False
    received: int = 0  # POSTs that arrived, counted to two
    workers: tuple[Worker, Worker] = (Worker(), Worker())
    num_ends: int = 0
    has_forked: bool = False


@dataclass(frozen=True)
class Protocol:
    """The scripts; each flag that is off makes a mutant."""

    checks_fence: bool = True
    sweeps: bool = True
    event_in_transaction: bool = True
    announces_next: bool = True
    ends_delays: bool = True

    def successors(self, world: World) -> Iterator[World]:
        """Yield every state that is one step away."""
        yield from self._window(world)
        yield from self._queue(world)
        for index in range(2):
            yield from self._worker(world, index)
        yield from self._sweep(world)
        yield from self._cancel(world)
        yield from self._deliver(world)

    def _window(self, world: World) -> Iterator[World]:
        if world.place == "delayed" and self.ends_delays:
            yield self._fill_window(world._replace(place="waiting"))
        if world.neighbour == "announced":
            yield self._fill_window(world._replace(neighbour="gone"))  # claimed, or cancelled
            yield world._replace(neighbour="lost")
        elif world.neighbour == "lost" and self.sweeps:
            yield world._replace(neighbour="announced")

    def _fill_window(self, world: World) -> World:
        """Fill the window, as every script does that frees a place or adds a waiting job."""
        is_next = world.state == "queued" and world.place == "waiting" and world.neighbour == "gone"
        if not self.announces_next or not is_next:
            return world
        return world._replace(place="announced", messages=1)

    def _queue(self, world: World) -> Iterator[World]:
        if world.messages:
            yield world._replace(messages=world.messages - 1)  # lost
        if 0 < world.messages < MAX_MESSAGES:
            yield world._replace(messages=world.messages + 1)  # delivered twice

    def _worker(self, world: World, index: int) -> Iterator[World]:
        worker = world.workers[index]
        if worker == Worker():
            if world.messages:
                taken = world._replace(messages=world.messages - 1)
                yield _with(taken, index, Worker(has_message=True))
            return
        # Killed. The last claim survives: otherwise the search would end in states that only lack a
        # fourth claim.
        if not worker.fence or worker.fence < MAX_FENCE or worker.fence < world.fence:
            yield _with(world, index, Worker())
        if worker.owes_event:
            yield _with(_add_event(world), index, Worker())
        elif worker.has_message:
            yield from self._claim(world, index)
        else:
            yield from self._work(world, index, worker)

    def _claim(self, world: World, index: int) -> Iterator[World]:
        if world.state != "queued":
            yield _with(world, index, Worker())  # refused: the message is dropped
        elif world.fence < MAX_FENCE:
            fence = world.fence + 1
            claimed = world._replace(state="in_progress", fence=fence, lease_is_live=True)
            job = Worker(fence=fence, saved=len(world.tokens), tokens=world.tokens)
            yield _with(claimed, index, job)
            if fence < MAX_FENCE:
                yield _with(claimed, index, Worker())  # the reply was lost, and the claim with it

    def _work(self, world: World, index: int, worker: Worker) -> Iterator[World]:
        if len(worker.tokens) < NUM_TOKENS and not worker.must_stop:
            yield _with(world, index, worker._replace(tokens=(*worker.tokens, worker.fence)))
        written = self._append(world, worker)
        if written is None:
            # Fenced, or already done: the worker drops the job.
            yield _with(world, index, Worker())
            return
        # A checkpoint renews the lease. The reply arrives or is lost.
        written = written._replace(lease_is_live=True)
        knows = worker._replace(saved=len(worker.tokens), must_stop=world.cancel_requested)
        yield _with(written, index, knows)
        yield written
        if len(worker.tokens) == NUM_TOKENS or worker.must_stop:
            state = "cancelled" if worker.must_stop else "completed"
            ended = self._end(written, state)
            if self.event_in_transaction:
                yield _with(ended, index, Worker())
                yield ended  # the reply was lost
            else:
                yield _with(ended, index, worker._replace(owes_event=True))

    def _append(self, world: World, worker: Worker) -> World | None:
        """Return the tokens that the checkpoint script leaves, or None if it refuses."""
        may_write = world.state == "in_progress" and world.fence == worker.fence
        if self.checks_fence and not may_write:
            return None
        if world.state not in ("queued", "in_progress") or len(world.tokens) < worker.saved:
            return None
        sent = worker.tokens[worker.saved :]
        overlap = world.tokens[worker.saved :]
        if overlap != sent[: len(overlap)] and len(overlap) <= len(sent):
            return None
        stream = world.tokens + sent[len(overlap) :]
        forked = stream != worker.tokens
        return world._replace(tokens=stream, has_forked=world.has_forked or forked)

    def _end(self, world: World, state: str) -> World:
        ended = world._replace(state=state, lease_is_live=False, num_ends=world.num_ends + 1)
        return _add_event(ended) if self.event_in_transaction else ended

    def _sweep(self, world: World) -> Iterator[World]:
        # A lease may run out at any time: its worker was killed, or was only asleep.
        if world.lease_is_live and world.fence < MAX_FENCE:
            yield world._replace(lease_is_live=False)
        if not self.sweeps:
            return
        if world.state == "in_progress" and not world.lease_is_live:
            if world.cancel_requested:
                yield _add_event(self._end(world, "cancelled"))
            else:
                yield world._replace(state="queued", messages=min(world.messages + 1, MAX_MESSAGES))
        if world.state == "queued" and world.place == "announced" and world.messages == 0:
            yield world._replace(messages=1)

    def _cancel(self, world: World) -> Iterator[World]:
        if world.state == "queued":
            yield _add_event(self._end(world, "cancelled"))
        elif world.state == "in_progress" and not world.cancel_requested:
            yield world._replace(cancel_requested=True)

    def _deliver(self, world: World) -> Iterator[World]:
        if world.deliverer:
            yield world._replace(deliverer=0, has_posted=False)  # killed, before or after the POST
            if not world.has_posted:
                yield world._replace(has_posted=True, received=min(world.received + 1, 2))
            elif world.deliverer == world.event_fence and world.event == "pending":
                yield world._replace(event="delivered", deliverer=0, has_posted=False)
        elif world.event == "pending":  # its lease may have run out: the fence decides
            fence = min(world.event_fence + 1, 2)
            yield world._replace(event_fence=fence, deliverer=fence, has_posted=False)


def _with(world: World, index: int, worker: Worker) -> World:
    """Return the world with one worker changed; sorted, because all workers are equal."""
    first, second = sorted((worker, world.workers[1 - index]))
    return world._replace(workers=(first, second))


def _add_event(world: World) -> World:
    return world if world.event != "none" else world._replace(event="pending")


@dataclass(frozen=True)
class Findings:
    """Findings of a search."""

    num_states: int
    violations: list[tuple[str, int]]  # message, and after how many steps
    num_stuck: int
    num_never_started: int  # states with waiting jobs from which no path leads to a claim


def search(protocol: Protocol, *, stop_at_first: bool = False) -> Findings:
    """Visit every reachable state."""
    start = World()
    depth = {start: 0}
    came_from: dict[World, list[World]] = {start: []}
    todo = deque([start])
    violations: list[tuple[str, int]] = []
    while todo and not (stop_at_first and violations):
        world = todo.popleft()
        if what := violation(world):
            violations.append((what, depth[world]))
            continue  # successors of a broken state prove nothing
        for successor in protocol.successors(world):
            if successor not in depth:
                depth[successor] = depth[world] + 1
                came_from[successor] = []
                todo.append(successor)
            came_from[successor].append(world)
    delivered = [world for world in came_from if world.event == "delivered"]
    started = [world for world in came_from if world.fence]
    can_start = _can_reach(came_from, started)
    return Findings(
        num_states=len(depth),
        violations=violations,
        num_stuck=len(depth) - len(_can_reach(came_from, delivered)),
        num_never_started=sum(
            world.state == "queued" and world not in can_start for world in came_from
        ),
    )


def violation(world: World) -> str | None:
    """Return the violation in a state, or None."""
    if world.has_forked:
        return "forked stream"
    if world.num_ends > 1:
        return "two ends"
    if list(world.tokens) != sorted(world.tokens) or len(world.tokens) > NUM_TOKENS:
        return "tokens of an older claim after those of a newer one"
    if world.state == "completed" and len(world.tokens) != NUM_TOKENS:
        return "completed without all tokens"
    if world.received and world.num_ends == 0:
        return "webhook of a job that has not ended"
    return None


def _can_reach(came_from: dict[World, list[World]], goals: list[World]) -> set[World]:
    """Return the states from which some path leads to one of the goals."""
    todo = deque(goals)
    seen = set(todo)
    while todo:
        for world in came_from[todo.popleft()]:
            if world not in seen:
                seen.add(world)
                todo.append(world)
    return seen


@pytest.fixture(scope="module")
def findings() -> Findings:
    return search(Protocol())


def test_nothing_that_can_happen_breaks_the_protocol(findings: Findings) -> None:
    assert findings.violations == []


def test_the_webhook_can_be_delivered_from_every_state(findings: Findings) -> None:
    assert findings.num_stuck == 0


def test_a_claim_can_be_reached_from_every_state_in_which_the_job_waits(
    findings: Findings,
) -> None:
    assert findings.num_never_started == 0


def test_the_search_is_not_trivially_small(findings: Findings) -> None:
    assert findings.num_states > 4000


def test_without_the_fence_check_the_stream_forks() -> None:
    found = search(Protocol(checks_fence=False), stop_at_first=True)
    assert [what for what, _ in found.violations] == ["forked stream"]


def test_without_the_sweep_jobs_are_lost() -> None:
    found = search(Protocol(sweeps=False))
    assert found.violations == []
    assert found.num_stuck > 0


def test_with_the_event_outside_of_the_transaction_webhooks_are_lost() -> None:
    found = search(Protocol(event_in_transaction=False))
    assert found.violations == []
    assert found.num_stuck > 0


def test_without_announcing_the_next_job_jobs_are_lost() -> None:
    found = search(Protocol(announces_next=False))
    assert found.num_never_started > 0


def test_without_the_end_of_delays_jobs_are_lost() -> None:
    found = search(Protocol(ends_delays=False))
    assert found.num_never_started > 0
