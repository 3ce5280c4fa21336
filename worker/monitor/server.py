"""Runs Flower in this process, with our queue page."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from celery import Celery
from flower import command
from flower.app import Flower, rewrite_handler
from flower.options import options
from flower.urls import settings
from tornado.ioloop import PeriodicCallback

from batchmill.producer.broker_url import celery_options, celery_tls, celery_url
from batchmill.producer.store.job_store import JobStore

from .queue_page import QueueLengths, QueuePage

#: Milliseconds between two looks for workers that have not been asked for their queues.
_LOOK_INTERVAL_MS = 2_000


def run_flower(broker_url: str, arguments: Sequence[str]) -> None:
    """Run Flower until SIGTERM or Ctrl-C.

    Args:
        broker_url: any URL that `find_broker` returns.
        arguments: Flower's own options, such as `--port=5556`; `FLOWER_*` variables count as well.
    """
    options.address = "127.0.0.1"  # Flower's default is all interfaces, without a password
    command.apply_env_options()
    command.apply_options("batchmill flower", list(arguments))
    command.extract_settings()
    command.setup_logging()
    flower = Flower(capp=_celery_app(broker_url), options=options, **settings)
    flower.settings["batchmill_store"] = store = JobStore.from_url(broker_url)
    handlers: list[Any] = [(r"/broker", QueuePage), (r"/api/queues/length", QueueLengths)]
    if options.url_prefix:
        handlers = [rewrite_handler(handler, options.url_prefix) for handler in handlers]
    flower.add_handlers(r".*", handlers)  # before Flower's own
    # An exception in a signal handler could leave a thread of Flower's pool without an end.
    for number in (signal.SIGINT, signal.SIGTERM):
        flower.io_loop.asyncio_loop.add_signal_handler(number, flower.io_loop.stop)
    PeriodicCallback(lambda: _ask_new_workers(flower), _LOOK_INTERVAL_MS).start()
    try:
        port = flower.start_http_server()
        if port is not None:
            print(f"Flower listens on http://{options.address or '0.0.0.0'}:{port}", flush=True)
        flower.start()
    finally:
        flower.stop()  # saves its history
        store.close()


def _celery_app(broker_url: str) -> Celery:
    url = celery_url(broker_url)
    app = Celery("batchmill", broker=url, set_as_current=True)
    app.conf.broker_transport_options = celery_options(broker_url)
    app.conf.broker_use_ssl = celery_tls(broker_url) or False
    return app


def _ask_new_workers(flower: Flower) -> None:
    """Ask workers for their queues that have started since the last look."""
    alive = {name for name, worker in flower.events.state.workers.items() if worker.alive}
    asked = {name for name, facts in flower.workers.items() if "active_queues" in facts}
    if alive - asked:
        flower.update_workers()
