"""Runs the gateway in this process until SIGTERM."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import structlog
import uvicorn

from batchmill.producer.protocol import keys
from batchmill.producer.store.api_keys import store_given_key
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.service_errors import GatewayFailed

from .app import Part, build_app
from .connection import connection_class
from .gateway_metrics import GatewayMetrics
from .settings import GatewaySettings

_log = structlog.get_logger(__name__)
#: Seconds for the requests in flight when the gateway is to end. Their jobs continue.
_STOP_S = 20


def run_gateway(settings: GatewaySettings, parts: Sequence[Part] = ()) -> None:
    """Serve until SIGTERM or SIGINT; then finish the requests in flight, and return.

    Args:
        settings: of the gateway.
        parts: served beside the APIs.

    Raises:
        BrokerUnavailable: the broker does not reply.
        GatewayFailed: it cannot listen on its address.
        ApiKeyRefused: the API key of the settings could be guessed.
        MetricsFailed: its metrics cannot be served on their address.
    """
    has_keys = _has_keys(settings)
    if not has_keys and not settings.is_loopback:
        _log.warning(
            "gateway_needs_a_key",
            host=settings.gateway_host,
            remedy="every request is refused until `batchmill keys create` has made a key",
        )
    metrics = GatewayMetrics(settings)
    config = uvicorn.Config(
        build_app(settings, metrics.meter, parts),
        host=settings.gateway_host,
        port=settings.gateway_port,
        http=connection_class(
            header_timeout_s=settings.gateway_header_timeout_s,
            write_timeout_s=settings.gateway_write_timeout_s,
        ),
        ws="none",
        h11_max_incomplete_event_size=settings.gateway_max_header_bytes,
        limit_concurrency=settings.gateway_max_connections,
        timeout_keep_alive=settings.gateway_keep_alive_s,
        timeout_graceful_shutdown=_STOP_S,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    server = _Server(config, is_open=not has_keys and settings.is_loopback)
    with metrics, contextlib.suppress(SystemExit):  # uvicorn's way to end if it cannot listen
        server.run()
    if not server.started:
        raise GatewayFailed(
            f"the gateway cannot listen on {settings.gateway_host}:{settings.gateway_port}: is "
            "another program there? Choose another port with --gateway-port"
        )


class _Server(uvicorn.Server):
    """A server that says where it listens, and whether it is open."""

    def __init__(self, config: uvicorn.Config, *, is_open: bool) -> None:
        super().__init__(config)
        self._is_open = is_open

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _log.info("gateway_started", url=f"http://{shown}:{port}/v1")
        if self._is_open:
            _log.warning(
                "gateway_is_open",
                meaning="no API key exists, so every user of this machine may send requests",
                remedy="batchmill keys create NAME",
            )


def _has_keys(settings: GatewaySettings) -> bool:
    """Store the key of the settings, and return whether there is any key."""
    assert settings.broker_url is not None
    secret = settings.gateway_api_key

    def look(store: JobStore) -> bool:
        if secret is not None:
            store_given_key(store, secret.get_secret_value())
        return bool(store.client.exists(keys.API_KEYS))

    stores = JobStores.from_url(
        settings.broker_url, timeout_s=settings.broker_timeout_s, part_limit_s=None
    )
    try:
        with broker_errors(settings.broker_url):
            shards = stores.look()
            found = shards.each(look)
            if not found:
                shards.check()
    finally:
        stores.close()
    if shards.missing:
        _log.warning("shards_away", shards=list(shards.missing))
    return any(found)
