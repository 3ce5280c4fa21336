"""The screen of `batchmill top`: redrawn at an interval, until q is pressed."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batchmill.worker.terminal import make_table

from .top_view import TopReader, TopView

if TYPE_CHECKING:
    from batchmill.producer.store.every_shard import JobStores


def show_live(reader: TopReader, stores: JobStores, interval_s: float) -> None:
    """Redraw the terminal at an interval, until q is pressed.

    An outage of Redis after the first reading is shown, and the figures before it stay.

    Raises:
        redis.exceptions.RedisError: Redis did not reply the first time.
    """
    from redis.exceptions import RedisError
    from rich.live import Live

    from batchmill.producer.errors import BrokerUnavailable

    view, problem = reader.read(stores.look()), ""
    with _keys() as keyboard, Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(_screen(view, problem), refresh=True)
            if _is_quit(keyboard, interval_s):
                return
            try:
                view, problem = reader.read(stores.look()), ""
            except (RedisError, OSError, BrokerUnavailable) as error:
                problem = f"the broker does not reply, trying again: {type(error).__name__}"


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Let single keys be read from the terminal; yield its descriptor, or None without one."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _is_quit(keyboard: int | None, interval_s: float) -> bool:
    """Wait for the interval; return whether q was pressed meanwhile."""
    until = time.monotonic() + interval_s
    while (left_s := until - time.monotonic()) > 0:
        if keyboard is None:
            time.sleep(left_s)
        elif select.select([keyboard], [], [], left_s)[0]:
            pressed = os.read(keyboard, 64)
            if not pressed or pressed[:1] in b"qQ":  # or the terminal is gone
                return True
    return False


def _screen(view: TopView, problem: str) -> Any:
    from rich.console import Group
    from rich.text import Text

    now = f"{datetime.now(UTC):%H:%M:%S} UTC"
    head = Text(f"batchmill  {now}  q quits", style="bold")
    lines = [head, Text(view.headline())]
    problems = [problem] if problem else view.problems
    lines += [Text(each, style="bold red") for each in problems]
    return Group(*lines, *(make_table(*parts) for parts in view.tables()))
