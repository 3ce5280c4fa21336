"""`Site`: what all pages of one gateway share, and the templates."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from batchmill.producer import Client
from batchmill.producer.broker_url import find_broker
from batchmill.producer.bulk.settings import PriceSettings
from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S
from batchmill.worker.gateway.settings import GatewaySettings

from . import formats

_FOLDER = Path(__file__).parent
#: Files that a browser may fetch, and their types.
STATIC_TYPES = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "theme.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


class Site:
    """Owns the connections of the console, for use from threads."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Connect at the first call."""
        self.settings = settings
        self.url = find_broker(settings.broker_url)
        self.stores = JobStores.from_url(
            self.url, timeout_s=settings.broker_timeout_s, part_limit_s=COMPARE_LIMIT_S
        )
        self.client = Client(self.url, settings=settings)
        self.prices = PriceSettings().prices
        self.templates = _templates(self.version)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.stores.close()

    @cached_property
    def static(self) -> dict[str, bytes]:
        """The content of each static file, by name."""
        return {name: (_FOLDER / "static" / name).read_bytes() for name in STATIC_TYPES}

    @cached_property
    def version(self) -> str:
        """A name for the present content of the static files: it is part of their URLs."""
        return hashlib.sha256(b"".join(self.static.values())).hexdigest()[:12]


def _templates(version: str) -> Environment:
    templates = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= formats.FILTERS
    templates.globals["version"] = version
    return templates
