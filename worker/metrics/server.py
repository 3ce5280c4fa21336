"""The HTTP server of metrics and probes: `/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

import structlog

from batchmill.worker.service_errors import MetricsFailed

from .exposition import Exposition
from .probes import Probe
from .series import Source

_log = structlog.stdlib.get_logger("batchmill.metrics")
#: Seconds that a client may take to send its request and to read the response.
_CLIENT_TIMEOUT_S: Final = 10.0


class MetricsServer:
    """Serves one service's metrics and health from threads of its own."""

    def __init__(
        self, host: str, port: int, *, service: str, sources: Sequence[Source], probe: Probe
    ) -> None:
        """Begin to listen; `start` begins to serve.

        Args:
            host: address to listen on.
            port: to listen on; 0 chooses one.
            service: name for logs.
            sources: read at each scrape, by one thread at a time.
            probe: asked at each probe, from any thread.

        Raises:
            MetricsFailed: the address is in use, or does not exist.
        """
        self._service = service
        handler = _make_handler(Exposition(sources), probe)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server_class = type("_Server", (_Server,), {"address_family": family})
        try:
            self._server: ThreadingHTTPServer = server_class((host.strip("[]"), port), handler)
        except OSError as error:
            raise MetricsFailed(
                f"the metrics of the {service} cannot be served on {host}:{port} ({error}); choose "
                "another BATCHMILL_METRICS_PORT, or unset it"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve until `close`."""
        self._thread.start()
        host = self._server.server_address[0]
        shown = f"[{host!s}]" if ":" in str(host) else host
        _log.info(
            "metrics_served", service=self._service, url=f"http://{shown!s}:{self.port}/metrics"
        )

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking DNS for the name of the host, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that went away or is too slow; log anything else."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("metrics_request_failed")


def _make_handler(exposition: Exposition, probe: Probe) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()  # sources are read by one thread at a time

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_S
        server_version = "batchmill"
        sys_version = ""

        def do_GET(self) -> None:
            """Serve one request."""
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._respond_to_scrape()
            elif path == "/healthz":
                self._respond_to_probe(probe().live_problem)
            elif path == "/readyz":
                health = probe()
                self._respond_to_probe(health.live_problem or health.ready_problem)
            else:
                paths = "/metrics, /healthz and /readyz"
                self._respond_json(404, {"error": f"there is nothing here but {paths}"})

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Write no line per request."""

        def _respond_to_scrape(self) -> None:
            try:
                with lock:
                    body, content_type = exposition.render(self.headers.get("Accept", ""))
            except Exception:
                _log.exception("metrics_not_read")
                self._respond_json(500, {"error": "the metrics cannot be read: see the log"})
                return
            self._respond(200, body, content_type)

        def _respond_to_probe(self, problem: str | None) -> None:
            if problem is None:
                self._respond_json(200, {"status": "ok"})
            else:
                self._respond_json(503, {"status": "unavailable", "problem": problem})

        def _respond_json(self, status: int, content: dict[str, str]) -> None:
            self._respond(status, json.dumps(content).encode() + b"\n", "application/json")

        def _respond(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
