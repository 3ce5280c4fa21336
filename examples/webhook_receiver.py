"""A webhook receiver on the standard library and `batchmill.producer`: verify, deduplicate, answer.

    export BATCHMILL_WEBHOOK_SECRET=whsec_…       # the deliverer's; `batchmill up` prints its file
    python examples/webhook_receiver.py

    export BATCHMILL_WEBHOOK_ALLOW_HTTP=true BATCHMILL_WEBHOOK_ALLOW_PORTS=8000
    export BATCHMILL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8       # for the deliverer, too
    batchmill submit "Once upon a time" --webhook http://127.0.0.1:8000/hook

Behind a real service put it behind TLS and use https: plain http is for one machine only.
"""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from batchmill.producer import SignatureError, WebhookEvent, verify_webhook

SECRETS = os.environ["BATCHMILL_WEBHOOK_SECRET"].split(",")
MAX_BODY_BYTES = 64 * 1024

#: Ids seen. Delivery is at least once, so the same event may come again, for up to four days after
#: it happened: a real service keeps these in its database, in the transaction that uses the event.
seen: set[str] = set()


def use(event: WebhookEvent) -> None:
    """Do what the job was for. Long work belongs in a queue: the sender waits 15 s at most."""
    print(f"{event.type}: job {event.data['id']}, {event.data['usage']}", flush=True)


class Receiver(BaseHTTPRequestHandler):
    """Answers 2xx only for what is verified and taken care of; anything else is sent again."""

    def do_POST(self) -> None:
        """Take one webhook."""
        num_bytes = int(self.headers.get("content-length", 0))
        if num_bytes > MAX_BODY_BYTES:
            self.answer(413)
            return
        body = self.rfile.read(num_bytes)  # the raw bytes: the signature is over these
        try:
            event = verify_webhook(body, dict(self.headers), SECRETS)
        except SignatureError as error:
            print(f"refused: {error}", flush=True)
            self.answer(401)
            return
        if event.id not in seen:
            use(event)
            seen.add(event.id)
        self.answer(204)

    def answer(self, status: int) -> None:
        """Answer without a body."""
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
