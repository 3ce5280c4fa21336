# Generated from async_operator_verbs.py by tests/structure/generate_sync.py: change that file.
"""The client's verbs for operators: pausing, and sending webhooks again."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from batchmill.producer.protocol.calls import pauses as pause_calls
from batchmill.producer.protocol.pauses import Pause, joined_pauses
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.pause_target import check_tenant, pause_target
from batchmill.producer.store.replay import (
    FULL_WAIT_S,
    MAX_WAITING_EVENTS,
    Replay,
    ReplayCounts,
    ReplayQuery,
    joined_counts,
    since_ms,
)
from batchmill.producer.store.shards import Shards


class OperatorVerbs:
    """Verbs of `Client` on queues, tenants and webhooks. The client owns the stores."""

    _url: str
    _shards: Shards

    def pause(
        self,
        *,
        queue: str | None = None,
        tenant: str | None = None,
        endpoint: str | None = None,
        by: str = "",
        reason: str = "",
        refuses: bool = False,
    ) -> bool:
        """Let the jobs of a queue or a tenant, or the webhooks of an endpoint, wait.

        Running jobs and deliveries in flight go on, and deadlines pass. The pause is kept in
        Redis: it applies at once, and outlives restarts.

        Args:
            queue: jobs of a model in one class, such as `batchmill.demo.normal`.
            tenant: its jobs in all queues; with `endpoint`, the tenant whose endpoint it is.
            endpoint: the URL of a webhook, query included.
            by: who pauses it, and
            reason: why; for people, and replaced if it is paused already.
            refuses: new jobs are refused (`QueuePaused`) meanwhile, instead of waiting.

        Returns:
            Whether it was not paused before.

        Raises:
            InvalidQuery: a name is invalid, or it is not clear what is meant.
            BrokerUnavailable: the broker does not respond; pausing again does no harm.
        """
        kind, name = pause_target(queue, tenant, endpoint)
        call = pause_calls.pause(kind, name, by=by, reason=reason, refuses=refuses)
        with broker_errors(self._url):
            changed = self._shards.run_everywhere(call)
        return any(changed)

    def resume(
        self,
        *,
        queue: str | None = None,
        tenant: str | None = None,
        endpoint: str | None = None,
    ) -> bool:
        """End a pause; what waited is announced or sent in its order. Arguments as of `pause`.

        Returns:
            Whether it was paused.

        Raises:
            InvalidQuery, BrokerUnavailable: as `pause`.
        """
        kind, name = pause_target(queue, tenant, endpoint)
        with broker_errors(self._url):
            changed = self._shards.run_everywhere(pause_calls.resume(kind, name))
        return any(changed)

    def pauses(self) -> builtins.list[Pause]:
        """Return everything that is paused, the oldest pause first.

        Raises:
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            stores = self._shards.every()
            found = [store.read(pause_calls.all_pauses()) for store in stores]
        return found[0] if len(found) == 1 else joined_pauses(found)

    def replay_webhooks(
        self,
        since: datetime | timedelta,
        *,
        endpoint: str | None = None,
        tenant: str = "default",
        job_id: str | None = None,
        receiver_id: str | None = None,
        failed_only: bool = False,
        on_progress: Callable[[ReplayCounts], None] | None = None,
    ) -> ReplayCounts:
        """Send webhook events again that were written since a time, after all other webhooks.

        Each has its id and its bytes, and a new retry schedule. Events are kept for eight days
        after their last attempt. While 100,000 events wait for delivery, this waits.

        Args:
            since: a time with its time zone, or how long ago.
            endpoint: only events for this URL,
            tenant: of this tenant.
            job_id: only events of this job or batch.
            receiver_id: only events for this registered receiver.
            failed_only: only events that were not delivered.
            on_progress: called after every 500 events. An interrupted replay continues from
                `continue_from`.

        Returns:
            How many events will be sent again, and which are no longer kept.

        Raises:
            InvalidQuery: the time has no zone or has yet to come, or a name is invalid.
            BrokerUnavailable: the broker does not respond; replaying again repeats nothing that
                still waits.
        """
        check_tenant(tenant)
        with broker_errors(self._url):
            stores = self._shards.every()
            times = [store.client.time() for store in stores]
        replays = []
        for seconds, microseconds in times:
            now_ms = int(seconds) * 1000 + int(microseconds) // 1000
            query = ReplayQuery(
                since_ms(since, now_ms),
                url=endpoint,
                tenant=tenant,
                job_id=job_id,
                receiver_id=receiver_id,
                failed_only=failed_only,
            )
            replays.append(Replay(query, now_ms, max_waiting=MAX_WAITING_EVENTS))
        for store, replay in zip(stores, replays, strict=True):
            while not replay.is_done:
                with broker_errors(self._url):
                    page = store.run(replay.call())
                if page is None:
                    time.sleep(FULL_WAIT_S)
                    continue
                replay.take(page)
                if on_progress is not None:
                    on_progress(joined_counts(replays))
        return joined_counts(replays)
