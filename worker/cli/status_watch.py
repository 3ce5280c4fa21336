"""`StatusWatch`: shows the status again and again, in place on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from batchmill.worker.terminal import make_table, print_json

from .broker_connection import missing
from .store_status import StoreStatus

if TYPE_CHECKING:
    from rich.live import Live

    from batchmill.producer.store.every_shard import EveryShard, JobStores


class StatusWatch:
    """Writes each status to stdout: tables that change, lines in a pipe, or one JSON per line."""

    def __init__(self, *, as_json: bool) -> None:
        """Bind to stdout."""
        self._as_json = as_json
        self._in_place = not as_json and sys.stdout.isatty()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._in_place:
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def run(self, stores: JobStores, interval_s: float) -> None:
        """Show the status at an interval, until the process is interrupted.

        Once it has been shown, an outage of Redis is reported, and the watch goes on. Of several
        shards, those that reply are shown, and the others are named each time.

        Raises:
            redis.exceptions.RedisError: Redis did not reply the first time.
        """
        from redis.exceptions import RedisError

        self._look(stores.look())
        while True:
            time.sleep(interval_s)
            try:
                self._look(stores.look())
            except (RedisError, OSError) as error:
                sys.stderr.write(f"the broker does not reply, trying again: {error}\n")
                sys.stderr.flush()

    def _look(self, shards: EveryShard) -> None:
        status = StoreStatus.read(shards)
        if self._as_json:
            print_json(status.as_json() | missing(shards))
        elif self._live is not None:
            self._live.update(_screen(status, shards.describe_missing()), refresh=True)
        else:
            for line in (*status.lines(), *shards.describe_missing()):
                sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _screen(status: StoreStatus, problems: Sequence[str]) -> Any:
    from rich.console import Group

    return Group(*problems, *(make_table(*parts) for parts in status.tables()))
