"""Sends Celery's task events some at a time, not one message for each turn of the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import bootsteps

#: An event waits at most this long for others; Celery sends 24 at once in any case. Raising it
#: saves messages, and shows people later what has happened.
_LONGEST_WAIT_S = 0.05


class EventBatches:
    """Has buffered events sent a moment after the first of them.

    Celery would wake the event loop for each event, and send what is there at its next turn: with
    one job a turn that is one message a job, a sixth of the worker's processor time.
    """

    def __init__(self, hub: Any, flush: Callable[[], None]) -> None:
        """Bind to kombu's event loop, and to what sends everything that is buffered."""
        self._hub = hub
        self._flush = flush
        self._is_due = False

    def on_buffered(self) -> None:
        """An event was buffered. Called from any thread."""
        if not self._is_due:
            self._is_due = True
            self._hub.call_soon(self._start_timer)  # timers belong to the loop's thread

    def _start_timer(self) -> None:
        self._hub.call_later(_LONGEST_WAIT_S, self._send)

    def _send(self) -> None:
        # First the flag: an event that is buffered from now on may miss this message.
        self._is_due = False
        self._flush()


class EventBatchStep(bootsteps.StartStopStep):
    """Makes each new event dispatcher of the consumer send in batches."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:
        """Take over from the event loop's next turn; runs again after each reconnect."""
        dispatcher = consumer.event_dispatcher
        if dispatcher.on_send_buffered is not None:
            batches = EventBatches(consumer.hub, dispatcher.flush)
            dispatcher.on_send_buffered = batches.on_buffered

    def stop(self, consumer: Any) -> None:
        """Send what waits: the connection's end takes the dispatcher along."""
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()
            # Celery 5.6 has cleared all timers by now; the pool's drain turns the loop further.
            self.start(consumer)

    def shutdown(self, consumer: Any) -> None:
        """Send what the pool's drain has brought, which comes after `stop`."""
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()
