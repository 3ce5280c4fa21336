"""Every series of every service. The page docs/metrics.md and the tests are made of this list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from .deliverer_series import DELIVERER_SERIES
from .gateway_series import GATEWAY_SERIES
from .queue_series import QUEUE_SERIES
from .series import Series
from .worker_series import WORKER_SERIES


def _of_model(series: Series) -> Series:
    """Return a worker's series as it is shown: with the served model as its first label."""
    return replace(series, labels=("model_name", *series.labels))


#: Series by the service that shows them.
CATALOGUE: Final[Mapping[str, tuple[Series, ...]]] = {
    "queues": QUEUE_SERIES,
    "worker": tuple(map(_of_model, WORKER_SERIES)),
    "deliverer": DELIVERER_SERIES,
    "gateway": GATEWAY_SERIES,
}
