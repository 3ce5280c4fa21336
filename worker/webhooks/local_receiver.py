"""A webhook receiver inside this process, for the demo and for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Network that the receiver listens on; the settings must allow deliveries to it.
LOOPBACK = "127.0.0.0/8"
#: A longer body is refused with 413.
MAX_BODY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One POST as it arrived."""

    path: str
    #: Names in lower case.
    headers: Mapping[str, str]
    body: bytes


Respond = Callable[[ReceivedRequest], int]


class _Server(ThreadingHTTPServer):
    """Accepts as many connections at once as a deliverer may have in flight."""

    daemon_threads = True
    #: The standard library's 5 makes the kernel drop handshakes, which the sender repeats only
    #: after a second.
    request_queue_size = 512


class WebhookReceiver:
    """Listens on a free loopback port and keeps every request, in the order of arrival."""

    def __init__(self, respond: Respond = lambda request: 204) -> None:
        """Choose a port; the receiver listens on it while entered.

        Args:
            respond: returns the HTTP status for a request. It may block: each request has a thread.
        """
        self._respond = respond
        self._arrived = threading.Condition()
        self._requests: list[ReceivedRequest] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="webhook-receiver", daemon=True
        )

    @property
    def url(self) -> str:
        """Base URL; any path below it is accepted."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Everything received so far."""
        with self._arrived:
            return list(self._requests)

    def wait_for(self, num_requests: int, *, timeout_s: float) -> bool:
        """Wait until this many requests have arrived; return False if they did not in time."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self._requests) >= num_requests, timeout_s)

    def __enter__(self) -> WebhookReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _receive(self, request: ReceivedRequest) -> int:
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()
        return self._respond(request)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receive = self._receive

        class Handler(BaseHTTPRequestHandler):
            timeout = 30  # seconds, for a client that stops in the middle

            def do_POST(self) -> None:
                num_bytes = int(self.headers.get("content-length", 0))
                if num_bytes > MAX_BODY_BYTES:
                    self._respond_with(413)
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(num_bytes)
                self._respond_with(receive(ReceivedRequest(self.path, headers, body)))

            def _respond_with(self, status: int) -> None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: the caller shows the requests that it wants to show."""

        return Handler
