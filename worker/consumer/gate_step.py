"""Puts the intake gate into Celery's consumer, on every new connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

from celery import bootsteps

from batchmill.producer.broker_url import redact


def install_gate(
    channel: Any, is_open: Callable[[], bool], select: Callable[[Sequence[str]], list[str]]
) -> None:
    """Let a kombu Redis channel ask for messages only while the gate is open.

    `select` gets the queues in order and returns those that are to be asked.

    Only the *asking* is gated: the reply to a pending BRPOP is always read. Otherwise a message
    that Redis had popped for us would lie in the socket of a busy worker, out of reach of others.
    """
    qos = channel.qos
    has_credit = qos.can_consume

    def can_consume(self: Any) -> bool:
        if getattr(channel, "_in_poll", None):
            return True
        return bool(has_credit()) and is_open()

    qos.can_consume = MethodType(can_consume, qos)
    cycle = channel._queue_cycle
    cycle.consume = partial(_consume, cycle.consume, select)


def _consume(
    consume: Callable[[int], list[str]],
    select: Callable[[Sequence[str]], list[str]],
    num_queues: int,
) -> list[str]:
    """Return the queues that the next request names, first the one that is read first."""
    return select(consume(num_queues))


class GateStep(bootsteps.StartStopStep):
    """Connects each new channel with the pool: the gate, and the queues that are consumed."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Connect the channel with the pool; Celery calls this again after each reconnect."""
        channel = consumer.task_consumer.channel
        install_gate(channel, consumer.pool.gate_is_open, consumer.pool.select_queues)
        channel.handed_lists = consumer.pool.handed_lists
        consumer.pool.channel = channel

    def info(self, consumer: Any) -> dict[str, Any]:
        """Return the broker for `inspect stats`: for a socket, Celery would show the whole URL.

        Celery asks the steps in order, so this replaces the entry of its own step.
        """
        if not consumer.connection:
            return {}
        broker = consumer.connection.info()
        broker.pop("password", None)
        broker["hostname"] = redact(str(broker["hostname"]))
        return {"broker": broker}
