"""After an outage, the consumer connects to the broker again within seconds."""

from __future__ import annotations

from typing import Any

import pytest
from kombu.exceptions import OperationalError

from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.broker_connection import MAX_WAIT_S
from batchmill.worker.settings import WorkerSettings

from ...support.processes import free_port


def test_no_wait_of_the_consumer_is_longer_than_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    url = f"redis://127.0.0.1:{free_port()}/0"
    app: Any = create_app(WorkerSettings(engine="stub", broker_url=url))
    waits: list[float] = []

    with pytest.raises(OperationalError):
        app.connection_for_read().ensure_connection(
            lambda error, wait_s: waits.append(wait_s), 20, callback=lambda: None
        )

    assert waits[0] < 1
    assert max(waits) == MAX_WAIT_S == 2
    assert len(waits) == 20
