"""A Celery event monitor, like Flower's."""

from __future__ import annotations

import threading
from typing import Any

from celery.events.state import State


class Monitor:
    """Collects events and builds Celery's state from them."""

    def __init__(self, app: Any) -> None:
        self.state = State()
        self.events: list[dict[str, Any]] = []
        self._app = app
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def types_of(self, task_id: str) -> list[str]:
        """Return the types of a task's events."""
        return [event["type"] for event in list(self.events) if event.get("uuid") == task_id]

    def close(self) -> None:
        self._stop = True
        self._thread.join(10)

    def _run(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._receive})
            with receiver.consumer_context(wakeup=False) as (own_connection, _, _):
                while not self._stop:
                    try:
                        own_connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def _receive(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.state.event(event)
