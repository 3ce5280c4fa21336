"""Ports for the metrics of the programs of `batchmill up`, which read one environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from batchmill.worker.service_errors import ChildMisconfigured

_VARIABLE: Final = "BATCHMILL_METRICS_PORT"
#: Distance of each program's port from the one that is set.
_PLACES: Final = {"worker": 0, "deliverer": 1, "gateway": 2}
_LAST_PORT: Final = 65535
_MOST_DIGITS: Final = 20


def metrics_environment(program: str, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the settings of a program's metrics; nothing if no port is set.

    The worker has the port that is set, the deliverer the next one, the gateway the one after it.
    The deliverer shows the figures of the whole broker, too.

    Raises:
        ChildMisconfigured: one of the three ports would be above the last port that exists.
    """
    port = given.get(_VARIABLE, "")
    if not port.isdecimal() or not port.strip("0"):  # 0 gives each program a port of its own
        return {}
    others = max(_PLACES.values())
    if len(port) > _MOST_DIGITS or int(port) + others > _LAST_PORT:
        raise ChildMisconfigured(
            f"{_VARIABLE} is {port[:20]}; it must be at most {_LAST_PORT - others}, because the "
            f"deliverer and the gateway use the next {others} ports"
        )
    chosen = {_VARIABLE: str(int(port) + _PLACES[program])}
    return chosen | ({"BATCHMILL_METRICS_QUEUES": "true"} if program == "deliverer" else {})
