"""A webhook receiver: verify the signature, drop repeats, respond.

    export BATCHMILL_WEBHOOK_SECRET=$(cat ~/.local/state/batchmill/webhook_secret)   # as `up` says
    python examples/webhook_receiver.py

    export BATCHMILL_WEBHOOK_ALLOW_HTTP=true BATCHMILL_WEBHOOK_ALLOW_PORTS=9000
    export BATCHMILL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8       # for the deliverer, too
    batchmill webhooks test http://127.0.0.1:9000/hook
    batchmill submit "Once upon a time" --webhook http://127.0.0.1:9000/hook

In production, serve it over https: plain http is for a single machine.
"""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from batchmill.producer import SignatureError, WebhookEvent, verify_webhook

SECRETS = os.environ["BATCHMILL_WEBHOOK_SECRET"].split(",")
MAX_BODY_BYTES = 64 * 1024

#: Ids of handled events. Delivery is at least once: an event may come again for up to four days. In
#: production, store ids in your database, in the transaction that uses the event.
seen: set[str] = set()


def use(event: WebhookEvent) -> None:
    """Use the event. Long work belongs in a queue: the sender waits for at most 15 s.

    Accept types that you do not know: `batchmill webhooks test` sends `webhook.test`, and later
    versions may have more. Every event has an id in its data, and only those of jobs have a usage.
    """
    print(event.type, event.data["id"], event.data.get("usage", ""), flush=True)


class Receiver(BaseHTTPRequestHandler):
    """Responds with 2xx only to events that are verified and handled; others are sent again."""

    def do_POST(self) -> None:
        """Receive one webhook."""
        num_bytes = int(self.headers.get("content-length", 0))
        if num_bytes > MAX_BODY_BYTES:
            self.respond(413)
            return
        body = self.rfile.read(num_bytes)  # the raw bytes, which the signature covers
        try:
            event = verify_webhook(body, dict(self.headers), SECRETS)
        except SignatureError as error:
            print(f"refused: {error}", flush=True)
            self.respond(401)
            return
        if event.id not in seen:
            use(event)
            seen.add(event.id)
        self.respond(204)

    def respond(self, status: int) -> None:
        """Respond without a body."""
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
