"""The intake gate: when the worker asks its queues for another job."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from celery import bootsteps

from batchmill.producer.broker_url import redact
from batchmill.worker.engine_host.link import EngineLink

from .active_jobs import ActiveJobs
from .intake import Intake

#: Jobs that may wait in the engine even when it starts fewer a step, so that a step is never
#: short of one.
_MIN_WAITING = 2
#: Steps whose prompts may be on their way: of the one that comes next, and of the one after it.
_STEPS_AHEAD = 2
#: Weight of the newest prompt in the running mean of prompt lengths.
_MEAN_WEIGHT = 0.05
_FIRST_GUESS_TOKENS = 64.0


class IntakeGate:
    """Open while the engine can start another job soon; so no worker hoards what another could run.

    A job is let in when there is a slot for it, when its prompt's likely blocks are free beyond
    those of the jobs already on their way, and when not more are on their way than two steps can
    start: with one step's jobs, every other step of a filling engine was half empty. What the
    engine's last report did not know yet counts as on its way.
    """

    def __init__(
        self,
        link: EngineLink,
        jobs: ActiveJobs,
        intake: Intake,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self._link = link
        self._jobs = jobs
        self._intake = intake
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._mean_prompt_tokens = _FIRST_GUESS_TOKENS
        self._closed = False
        # Whether the event loop may have found the gate shut, and sleeps.
        self._is_awaited = True

    def close(self) -> None:
        """Close for good: the worker shuts down."""
        self._closed = True

    def observe_prompt(self, num_prompt_tokens: int) -> None:
        """Learn from a prompt how long the next one may be."""
        self._mean_prompt_tokens += _MEAN_WEIGHT * (num_prompt_tokens - self._mean_prompt_tokens)

    def may_ask(self) -> bool:
        """Whether to ask for another job; where not, `has_opened` tells when it is time again.

        Called in the event loop only.
        """
        # First the note: what opens the gate during the look is seen here, or there.
        self._is_awaited = True
        is_open = self.is_open()
        self._is_awaited = not is_open
        return is_open

    def has_opened(self) -> bool:
        """Whether the event loop, which found the gate shut, is to be woken. From any thread.

        A loop that has asked is not: the queue's answer wakes it, and then it looks again.
        """
        return self._is_awaited and self.is_open()

    def is_open(self) -> bool:
        """Whether there is room for another job."""
        ready = self._link.ready
        if self._closed or ready is None or not self._link.is_moving:
            return False
        if self._intake.num_parked or self._jobs.num_held or self._jobs.needs_quiet:
            return False
        num_jobs = len(self._jobs)
        if num_jobs == 0:
            return True
        if num_jobs >= self._max_num_seqs:
            return False
        load = self._link.load
        num_coming = load.num_waiting + self._link.num_adds_sent - self._link.num_adds_seen
        startable = int(self._max_num_batched_tokens / max(1.0, self._mean_prompt_tokens))
        if num_coming >= max(_MIN_WAITING, _STEPS_AHEAD * startable):
            return False
        blocks_each = -(-(int(self._mean_prompt_tokens) + 1) // ready.block_size)
        return load.num_free_blocks >= blocks_each * (num_coming + 1)


def install_gate(channel: Any, is_open: Callable[[], bool]) -> None:
    """Let a kombu Redis channel ask for messages only while the gate is open.

    Only the *asking* is gated: the answer to a pending BRPOP is always read. Otherwise a message
    that Redis had popped for us would lie in the socket of a busy worker, where nobody can run it.
    """
    qos = channel.qos
    has_credit = qos.can_consume

    def can_consume(self: Any) -> bool:
        if getattr(channel, "_in_poll", None):
            return True
        return bool(has_credit()) and is_open()

    qos.can_consume = MethodType(can_consume, qos)


class GateStep(bootsteps.StartStopStep):
    """Installs the gate on every new connection of the consumer."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Install the pool's gate; runs again after each reconnect."""
        install_gate(consumer.task_consumer.channel, consumer.pool.gate_is_open)

    def info(self, consumer: Any) -> dict[str, Any]:
        """Return the broker for `inspect stats`: of a socket Celery shows the whole URL.

        Steps are asked in their order, so this takes the place of what Celery's own step says.
        """
        if not consumer.connection:
            return {}
        broker = consumer.connection.info()
        broker.pop("password", None)
        broker["hostname"] = redact(str(broker["hostname"]))
        return {"broker": broker}
