"""Submits the jobs of a plan in every way, and keeps trying while Redis is disturbed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis
from celery import Celery, chain, chord, group
from kombu.exceptions import OperationalError

from batchmill.producer import BrokerUnavailable, Client, JobRejected, QueueFull
from batchmill.producer.broker_url import celery_url
from batchmill.producer.protocol import keys
from batchmill.producer.store.connection import connect

from .planned_jobs import BOMBS, WORKFLOWS, Order, OrderKind, PlannedJob
from .site import Site

_Result = TypeVar("_Result")
#: Tag of every job, by which they are forgotten.
TAG = "chaos"
#: Queue of the tasks that follow a workflow. No program consumes it, so that what was sent stays.
FOLLOW_UP_QUEUE = "batchmill-chaos-follow-ups"
#: Prefix of the names of bombs that go through the inbox or Celery, before the order's number.
BOMB_PREFIX = "bomb-"
#: Orders that are submitted at once.
_NUM_THREADS = 24
_RETRY_PAUSE_S = 0.2
_TROUBLES = (BrokerUnavailable, QueueFull, redis.RedisError, OperationalError, OSError)


@dataclass(slots=True)
class Submitted:
    """The producers' knowledge of their jobs. Several threads fill it, each key by one thread."""

    #: Job id by the job's name.
    job_ids: dict[str, str] = field(default_factory=dict)
    #: Batch id by the order's number.
    batch_ids: dict[int, str] = field(default_factory=dict)
    #: Id of the task that must follow, by the order's number.
    follow_up_ids: dict[int, str] = field(default_factory=dict)
    #: Error code by the order's number, for orders that were refused.
    refusals: dict[int, str] = field(default_factory=dict)
    #: Workflows whose publication failed, so that nothing is known of them.
    abandoned: set[int] = field(default_factory=set)
    #: Names of the exceptions that producers saw, with their number.
    troubles: dict[str, int] = field(default_factory=dict)
    #: Orders that raised what no producer should see, by number.
    surprises: dict[int, str] = field(default_factory=dict)


class Traffic:
    """Owns the clients and the threads that submit."""

    def __init__(self, site: Site, orders: tuple[Order, ...], give_up_s: float) -> None:
        """Connect the clients.

        Args:
            site: where the jobs run.
            orders: by the time of their submission.
            give_up_s: seconds after the start when a submission that still fails is given up.
        """
        self.submitted = Submitted()
        self._site = site
        self._orders = orders
        self._give_up_s = give_up_s
        self._fields = _job_fields(site)
        url = site.client_link.url
        self._client = Client(url, settings=site.client_settings)
        self._redis = connect(url)
        self._tasks = Celery("chaos", broker=celery_url(url), set_as_current=False)
        self._workflows = Celery(
            "chaos", broker=celery_url(url), backend=celery_url(url), set_as_current=False
        )
        for app in (self._tasks, self._workflows):
            app.conf.broker_transport_options = {"socket_timeout": 5}
            app.conf.result_backend_thread_safe = True  # one for all threads
        _drop_subscriptions(self._workflows)
        self._queue = keys.queue_name(site.options.model, "normal")
        self._start_s = 0.0
        self._is_given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-traffic", daemon=True)

    def start(self) -> None:
        """Begin to submit."""
        self._start_s = time.monotonic()
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until all is submitted; return False if it took longer."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Submit nothing more, and end the threads. The run is over, or has failed."""
        self._is_given_up.set()

    def close(self) -> None:
        """Close the clients."""
        self._client.close()
        self._redis.close()
        self._tasks.close()
        self._workflows.close()

    def _run(self) -> None:
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="chaos-order") as pool:
            for order in self._orders:
                if self._is_given_up.wait(max(0.0, self._start_s + order.at_s - time.monotonic())):
                    pool.shutdown(cancel_futures=True)
                    return
                pool.submit(self._place, order)

    def _place(self, order: Order) -> None:
        try:
            if order.kind in BOMBS:
                self._place_bomb(order)
            elif order.kind in WORKFLOWS:
                self._place_workflow(order)
            elif order.kind is OrderKind.BATCH:
                self._place_batch(order)
            else:
                self._place_job(order, order.jobs[0])
        except Exception as error:
            self.submitted.surprises[order.number] = f"{type(error).__name__}: {error}"

    def _place_job(self, order: Order, job: PlannedJob) -> None:
        document = self._fields(job)
        job_id = f"chaos-{job.name.replace('.', '-')}"
        if order.kind is OrderKind.INBOX:
            text = json.dumps({"id": job_id, "model": self._site.options.model, **document})
            self._persist(lambda: self._redis.lpush(keys.INBOX, text))
        elif order.kind is OrderKind.TASK:
            self._persist(lambda: self._send_task(job_id, document))
        else:
            if order.kind is OrderKind.DEADLINE:
                document["ttl_s"] = order.after_s
            key = f"chaos-{job.name}"
            handle = self._persist(lambda: self._client.submit(idempotency_key=key, **document))
            job_id = handle.id
        self.submitted.job_ids[job.name] = job_id
        if order.kind is OrderKind.CANCELLED:
            time.sleep(order.after_s)
            self._persist(lambda: self._client.cancel(job_id))

    def _place_batch(self, order: Order) -> None:
        jobs = [{**self._fields(job), "custom_id": job.name} for job in order.jobs]
        fields: dict[str, Any] = {"idempotency_key": f"chaos-batch-{order.number}"}
        if order.webhook:
            fields["webhook"] = self._site.receiver.url + order.webhook
        status = self._persist(lambda: self._client.create_batch(jobs, **fields))
        self.submitted.batch_ids[order.number] = status.id

    def _place_workflow(self, order: Order) -> None:
        parts = [self._signature(self._fields(job)) for job in order.jobs]
        follow = self._workflows.signature(
            "chaos.follow_up", queue=FOLLOW_UP_QUEUE, immutable=True, ignore_result=True
        )
        try:
            if order.kind is OrderKind.CHAIN:
                result = chain(*parts, follow).apply_async()
                ids = _ids_before(result.parent)
            elif order.kind is OrderKind.GROUP:
                result = group(parts).apply_async()
                ids = [child.id for child in result.children]
            else:
                result = chord(parts)(follow)
                ids = [child.id for child in result.parent.children]
        except Exception as error:  # Celery's own clients raise many kinds when a call is cut
            self._note(error)
            self.submitted.abandoned.add(order.number)
            return
        if order.kind is not OrderKind.GROUP:
            self.submitted.follow_up_ids[order.number] = result.id
        for job, job_id in zip(order.jobs, ids, strict=True):
            self.submitted.job_ids[job.name] = job_id

    def _place_bomb(self, order: Order) -> None:
        document = {**_bomb(order.number), "tags": [TAG]}
        job_id = f"chaos-bomb-{order.number}"
        if order.kind is not OrderKind.BOMB_CLIENT:
            self.submitted.job_ids[f"{BOMB_PREFIX}{order.number}"] = job_id
        if order.kind is OrderKind.BOMB_INBOX:
            text = json.dumps({"id": job_id, "model": self._site.options.model, **document})
            self._persist(lambda: self._redis.lpush(keys.INBOX, text))
        elif order.kind is OrderKind.BOMB_TASK:
            self._persist(lambda: self._send_task(job_id, document))
        else:
            try:
                self._persist(lambda: self._client.submit(**document))
            except JobRejected as error:
                self.submitted.refusals[order.number] = error.code

    def _send_task(self, task_id: str, document: dict[str, Any]) -> None:
        try:
            self._tasks.send_task(
                keys.TASK_NAME, kwargs={"job": document}, queue=self._queue, task_id=task_id
            )
        except Exception as error:  # kombu raises many kinds when a call is cut
            raise OperationalError(f"{type(error).__name__}: {error}") from error

    def _signature(self, document: dict[str, Any]) -> Any:
        return self._workflows.signature(
            keys.TASK_NAME, kwargs={"job": document}, queue=self._queue, immutable=True
        )

    def _persist(self, call: Callable[[], _Result]) -> _Result:
        """Call until Redis takes it."""
        while True:
            try:
                return call()
            except _TROUBLES as error:
                self._note(error)
                if time.monotonic() > self._start_s + self._give_up_s:
                    raise
                if self._is_given_up.wait(_RETRY_PAUSE_S):
                    raise

    def _note(self, error: Exception) -> None:
        name = type(error).__name__
        self.submitted.troubles[name] = self.submitted.troubles.get(name, 0) + 1


def _job_fields(site: Site) -> Callable[[PlannedJob], dict[str, Any]]:
    """Return the function that makes a job's document."""
    is_real = site.options.engine == "real"

    def fields(job: PlannedJob) -> dict[str, Any]:
        found: dict[str, Any] = {
            "prompt": job.prompt,
            "max_tokens": job.max_tokens,
            "seed": job.seed,
            "tags": [TAG],
        }
        if is_real:
            found |= {"temperature": 0.0, "ignore_eos": True}
        if job.webhook:
            found["webhook"] = site.receiver.url + job.webhook
        return found

    return fields


def _drop_subscriptions(app: Celery) -> None:
    """Keep an app from subscribing to results: nothing waits, and a cut raises odd errors."""
    app.backend.on_task_call = lambda producer, task_id: {}
    app.backend.remove_pending_result = lambda result: result


def _ids_before(result: Any) -> list[str]:
    """Return the ids of a chain's tasks up to a result, in order."""
    ids: list[str] = []
    while result is not None:
        ids.insert(0, result.id)
        result = result.parent
    return ids


def _bomb(number: int) -> dict[str, Any]:
    """Return a job whose structure passes a limit when it is compiled."""
    # A prime near the largest that takes too long; 10,000,001 is compiled in a second.
    schema = {"type": "integer", "multipleOf": 9999991, "title": f"bomb {number}"}
    return {"prompt": "x", "max_tokens": 5, "structured_outputs": {"json": schema}}
