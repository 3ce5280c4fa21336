"""Brings the faults of a plan about, and ends them."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis

from .links import Link
from .plan import PlannedFault
from .programs import Program, signal_all
from .servers import ServerPair
from .site import Site

_CLIENT_KILL_INTERVAL_S = 0.2
_CUT_SHARE = 0.1


@dataclass(slots=True)
class ActiveFault:
    """A fault that has begun."""

    planned: PlannedFault
    ends_at_s: float
    #: The worker that it happens to; None if it happens to several programs.
    worker: str | None = None
    #: The program that it happens to; empty if it happens to several.
    program: str = ""
    #: Ends it; None if it ends by itself.
    end: Callable[[], None] | None = None
    #: Called again and again while it lasts.
    tick: Callable[[], None] | None = None


@dataclass(slots=True)
class FaultCounts:
    """How often each kind happened."""

    begun: Counter[str] = field(default_factory=Counter)
    #: Not begun, because its program was down at that time.
    skipped: Counter[str] = field(default_factory=Counter)


class Faults:
    """Begins and ends the faults of one plan on one site. Use it in the main thread."""

    def __init__(self, site: Site) -> None:
        self.counts = FaultCounts()
        self._site = site
        self._begin: dict[str, Callable[[ActiveFault], bool]] = {
            "kill_worker": self._kill_worker,
            "kill_main": self._kill_main,
            "kill_engine": self._kill_engine,
            "stop_engine": self._stop_engine,
            "term_worker": self._term_worker,
            "freeze_short": self._freeze_worker,
            "freeze_long": self._freeze_worker,
            "kill_deliverer": self._kill_deliverer,
            "freeze_deliverer": self._freeze_deliverer,
            "redis_term": self._end_redis(signal.SIGTERM),
            "redis_kill": self._end_redis(signal.SIGKILL),
            "redis_away": self._end_redis(signal.SIGKILL),
            "redis_frozen": self._freeze_redis,
            "redis_frozen_long": self._freeze_redis,
            "failover": self._fail_over,
            "failover_kill": self._kill_primary,
            "client_kill": self._kill_clients,
            "cut": self._cut,
            "cut_replies": self._cut_replies,
            "black_hole": self._black_hole,
            "isolate": self._isolate,
            "half_open_requests": self._on_links(Link.lose_requests),
            "half_open_replies": self._on_links(Link.lose_replies),
            "refuse": self._refuse,
            "receiver_errors": self._receiver_errors,
            "receiver_hangs": self._receiver_hangs,
        }

    def begin(self, planned: PlannedFault) -> ActiveFault | None:
        """Begin a fault; return None if its program is down."""
        fault = ActiveFault(planned, time.monotonic() + planned.duration_s)
        if not self._begin[planned.kind](fault):
            self.counts.skipped[planned.kind] += 1
            return None
        self.counts.begun[planned.kind] += 1
        return fault

    # Processes.

    def _kill_worker(self, fault: ActiveFault) -> bool:
        worker = self._running(fault, self._site.workers)
        if worker is not None:
            engine_pids = worker.engine_pids
            worker.signal(signal.SIGKILL, ends=True)
            signal_all(engine_pids, signal.SIGKILL)
        return worker is not None

    def _kill_main(self, fault: ActiveFault) -> bool:
        worker = self._running(fault, self._site.workers)
        if worker is not None:
            worker.signal(signal.SIGKILL, ends=True)
        return worker is not None

    def _kill_engine(self, fault: ActiveFault) -> bool:
        return self._signal_engine(fault, signal.SIGKILL)

    def _stop_engine(self, fault: ActiveFault) -> bool:
        return self._signal_engine(fault, signal.SIGSTOP)

    def _signal_engine(self, fault: ActiveFault, number: int) -> bool:
        worker = self._running(fault, self._site.workers)
        engine_pids = [] if worker is None else worker.engine_pids
        signal_all(engine_pids, number)
        return bool(engine_pids)

    def _term_worker(self, fault: ActiveFault) -> bool:
        worker = self._running(fault, self._site.workers)
        if worker is not None:
            worker.signal(signal.SIGTERM, ends=True)
        return worker is not None

    def _freeze_worker(self, fault: ActiveFault) -> bool:
        worker = self._running(fault, self._site.workers)
        if worker is None:
            return False
        pids = [worker.pid or 0, *worker.engine_pids]
        signal_all(pids, signal.SIGSTOP)
        fault.end = lambda: signal_all(pids, signal.SIGCONT)
        return True

    def _kill_deliverer(self, fault: ActiveFault) -> bool:
        deliverer = self._running(fault, self._site.deliverers)
        if deliverer is not None:
            deliverer.signal(signal.SIGKILL, ends=True)
        return deliverer is not None

    def _freeze_deliverer(self, fault: ActiveFault) -> bool:
        deliverer = self._running(fault, self._site.deliverers)
        if deliverer is None:
            return False
        deliverer.signal(signal.SIGSTOP)
        fault.end = lambda: deliverer.signal(signal.SIGCONT)
        return True

    def _running(self, fault: ActiveFault, programs: list[Program]) -> Program | None:
        """Return the victim, or None if it is down. A worker is noted as the fault's."""
        program = programs[fault.planned.victim % len(programs)]
        if program.pid is None:
            return None
        fault.program = program.name
        if program in self._site.workers:
            fault.worker = program.name
        return program

    # Servers.

    @property
    def _servers(self) -> ServerPair:
        assert self._site.servers is not None
        return self._site.servers

    def _end_redis(self, number: int) -> Callable[[ActiveFault], bool]:
        def begin(fault: ActiveFault) -> bool:
            if number == signal.SIGKILL and self._servers.pid is not None:
                with self._silent_links():  # it may have confirmed what it has not written yet
                    self._servers.wait_until_written()
                    self._servers.signal_primary(number)
            else:
                self._servers.signal_primary(number)
            fault.end = self._servers.restart_primary
            return True

        return begin

    def _freeze_redis(self, fault: ActiveFault) -> bool:
        self._servers.signal_primary(signal.SIGSTOP)
        fault.end = lambda: self._servers.signal_primary(signal.SIGCONT)
        return True

    def _fail_over(self, fault: ActiveFault) -> bool:
        if not self._servers.has_follower():
            return False
        self._servers.fail_over()
        self._lead_to_primary()
        return True

    def _kill_primary(self, fault: ActiveFault) -> bool:
        if not self._servers.has_follower():
            return False
        with self._silent_links():  # no reply leaves the primary for what the replica lacks
            self._servers.kill_and_promote()
            self._lead_to_primary()
        fault.end = self._servers.restart_replica
        return True

    @contextmanager
    def _silent_links(self) -> Iterator[None]:
        """Let nothing pass to or from the primary, then cut all connections."""
        links = [*self._site.disturbed_links, self._site.observer_link]
        held = [link for link in links if not link.is_held]  # others stay held by their own fault
        for link in held:
            link.hold()
        try:
            yield
        finally:
            for link in links:
                link.cut()
            for link in held:
                link.release()

    def _lead_to_primary(self) -> None:
        self._site.links.lead_to(self._servers.url)
        self._site.observer_link.cut()

    def _kill_clients(self, fault: ActiveFault) -> bool:
        next_at_s = 0.0

        def tick() -> None:
            nonlocal next_at_s
            if time.monotonic() < next_at_s:
                return
            next_at_s = time.monotonic() + _CLIENT_KILL_INTERVAL_S
            try:
                with redis.Redis.from_url(self._servers.url, socket_timeout=1) as client:
                    for kind in ("normal", "pubsub"):
                        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            except redis.RedisError:
                return  # the server is down by another fault

        fault.tick = tick
        return True

    # The network.

    def _chosen_links(self, fault: ActiveFault) -> list[Link]:
        """Return one worker's link, or those of all programs and clients."""
        victim = fault.planned.victim
        links = self._site.worker_links
        if victim % 2:
            return self._site.disturbed_links
        number = (victim // 2) % len(links)
        fault.program = fault.worker = self._site.workers[number].name
        return [links[number]]

    def _on_links(self, act: Callable[[Link], None]) -> Callable[[ActiveFault], bool]:
        def begin(fault: ActiveFault) -> bool:
            for link in self._chosen_links(fault):
                act(link)
            return True

        return begin

    def _cut(self, fault: ActiveFault) -> bool:
        return self._on_links(Link.cut)(fault)

    def _cut_replies(self, fault: ActiveFault) -> bool:
        links = self._chosen_links(fault)
        for link in links:
            link.cut_replies(_CUT_SHARE)

        def end() -> None:
            for link in links:
                link.cut_replies(0.0)

        fault.end = end
        return True

    def _black_hole(self, fault: ActiveFault) -> bool:
        return self._hold(fault, self._chosen_links(fault))

    def _isolate(self, fault: ActiveFault) -> bool:
        number = fault.planned.victim % len(self._site.workers)
        fault.program = fault.worker = self._site.workers[number].name
        return self._hold(fault, [self._site.worker_links[number]])

    def _hold(self, fault: ActiveFault, links: list[Link]) -> bool:
        for link in links:
            link.hold()

        def end() -> None:
            for link in links:
                link.release()

        fault.end = end
        return True

    def _refuse(self, fault: ActiveFault) -> bool:
        links = self._chosen_links(fault)
        for link in links:
            link.refuse(True)

        def end() -> None:
            for link in links:
                link.refuse(False)

        fault.end = end
        return True

    # Receivers.

    def _receiver_errors(self, fault: ActiveFault) -> bool:
        receiver = self._site.receiver
        receiver.has_errors = True

        def end() -> None:
            receiver.has_errors = False

        fault.end = end
        return True

    def _receiver_hangs(self, fault: ActiveFault) -> bool:
        receiver = self._site.receiver
        receiver.is_hanging = True

        def end() -> None:
            receiver.is_hanging = False

        fault.end = end
        return True
