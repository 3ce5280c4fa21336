"""Makes the Celery app of a worker. Imports no torch: only the engine process does."""

from __future__ import annotations

import ssl
from typing import Any

from celery import Celery, signals
from kombu.entity import Queue

from batchmill.producer.broker_url import celery_url
from batchmill.producer.store.primary import sentinel_service, server_url
from batchmill.worker.logs import configure_logging
from batchmill.worker.settings import WorkerSettings
from batchmill.worker.unknown_settings import log_unknown_variables

from . import result_backend
from .broker_connection import LOOK_INTERVAL_S, BrokerConnection
from .event_batches import EventBatchStep
from .gate_step import GateStep
from .generate_task import GenerateTask
from .own_shard import broker_of_worker
from .pool import SETTINGS_KEY
from .transport import SENTINEL_OPTION, TRANSPORT_NAME, register_transport

#: Tasks that Celery may hold beyond the engine's slots; the intake gate limits them.
_SPARE_TASKS = 8


def create_app(settings: WorkerSettings) -> Celery:
    """Return the Celery app of a worker.

    Raises:
        BrokerUnavailable: no broker is set and no embedded one runs.
        ValueError: there are several shards, and the settings name none or one that does not exist.
    """
    broker = broker_of_worker(settings)
    service = sentinel_service(broker)
    # A Celery connection of ours asks the Sentinels itself, so the URL needs only the service.
    url = celery_url(server_url(broker))
    register_transport()
    app = Celery("batchmill", broker=url, backend=url, set_as_current=False)
    app.loader.override_backends = result_backend.BACKENDS
    app.conf.update(_configuration(settings), **_broker_configuration(url))
    if service is not None:
        app.conf.broker_transport_options |= {SENTINEL_OPTION: service}
    # Not in the configuration: `inspect conf` would show a password in the URL.
    setattr(app, SETTINGS_KEY, settings.model_copy(update={"broker_url": broker}))
    app.amqp.Connection = BrokerConnection
    # Otherwise the worker would, after a reconnect, consume from each queue that it published to.
    app.amqp.queues.select(settings.queues)
    app.register_task(GenerateTask())
    app.steps["consumer"].update((GateStep, EventBatchStep))
    _configure_celery_logging(settings)
    return app


def _broker_configuration(url: str) -> dict[str, Any]:
    """Return the settings of the broker: consumers use our transport, everything else kombu's.

    Flower, for example, shows queue lengths only if it knows the URL's scheme.
    """
    scheme, _, rest = url.partition("://")
    ours = f"{TRANSPORT_NAME}+socket" if scheme == "redis+socket" else TRANSPORT_NAME
    settings: dict[str, Any] = {"broker_read_url": f"{ours}://{rest}"}
    if scheme == "rediss" and "ssl_cert_reqs=" not in rest:
        # As redis-py does. Celery has no default here, and refuses to start without a choice.
        checked = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        settings |= {"broker_use_ssl": checked, "redis_backend_use_ssl": checked}
    return settings


def _configuration(settings: WorkerSettings) -> dict[str, Any]:
    return {
        # JSON only: a pickle would let any program that can write to Redis execute code here.
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "task_queues": [Queue(name, exchange="", routing_key=name) for name in settings.queues],
        # For publishing: what follows a plain task (chain, chord, link) goes to any queue. Without
        # a queue it goes to Celery's default one, as from a stock worker, never to one of ours.
        "task_default_queue": "celery",
        "task_create_missing_queues": True,
        # The claim comes before this early acknowledgement; from then on the record counts.
        "task_acks_late": False,
        "task_send_sent_event": False,
        "task_store_errors_even_if_ignored": False,
        "result_expires": settings.result_ttl_s,
        "result_extended": False,
        "worker_pool": "batchmill.worker.consumer.pool:EnginePool",
        "worker_concurrency": settings.engine_config.max_num_seqs
        + settings.high_places
        + _SPARE_TASKS,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # Leases decide which worker runs a job, not the connection to the broker.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_prefetch_count_reduction": False,
        "worker_enable_remote_control": True,
        **_connection_configuration(),
    }


def _connection_configuration() -> dict[str, Any]:
    """Return the settings of connections to the broker and to the result backend."""
    return {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "queue_order_strategy": "priority",
            # Notice a cut connection: a half-open one holds the consumer for two such timeouts.
            # Never replay a push.
            "socket_timeout": 3,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": LOOK_INTERVAL_S,
            "retry_on_timeout": False,
        },
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": 3,
        "redis_backend_health_check_interval": 10,
        **result_backend.SETTINGS,
    }


def _configure_celery_logging(settings: WorkerSettings) -> None:
    def set_up(**_: Any) -> None:
        configure_logging(settings.log_level, settings.log_format)
        log_unknown_variables()

    signals.setup_logging.connect(set_up, weak=False, dispatch_uid="batchmill-logging")
