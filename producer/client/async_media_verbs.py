"""The client's verb for pictures and sounds that several jobs use, or that are large."""

from __future__ import annotations

import asyncio
from pathlib import Path

from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.async_shards import AsyncShards
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.media import check_stored, media_of


class AsyncMediaVerbs:
    """Verbs of `AsyncClient` on media. The client owns the stores."""

    settings: ProducerSettings
    _url: str
    _shards: AsyncShards

    async def put_media(
        self, content: bytes | bytearray | memoryview | str | Path, *, tenant: str | None = None
    ) -> str:
        """Store a picture or a sound for the jobs of a tenant, and return its id.

        A job names it by that id: `{"type": "image", "media": id}`. It is kept for
        `BATCHMILL_MEDIA_TTL_S`, and for as long as a job that names it has not ended, and as long
        after that. Storing the same bytes again sends nothing, and keeps them longer.

        Args:
            content: the bytes, or the path of a file on this machine.
            tenant: whose jobs may name it; None is the default tenant. No other tenant can find
                out that it is stored.

        Returns:
            `med_` and the SHA-256 of the bytes.

        Raises:
            JobRejected: it is too large (`media_too_large`), or neither a picture nor a sound
                (`media_invalid`).
            QueueFull: it does not fit into the limit on Redis' memory.
            BrokerUnavailable: the broker does not respond, or some shards (`shards`), and the
                others have it. Storing it again does no harm.
            PayloadUnreachable: the object store does not respond.
            OSError: the file cannot be read.
        """
        media = await asyncio.to_thread(media_of, content, tenant, self.settings)
        limit = self.settings.max_memory_percent

        async def put(store: AsyncStore) -> None:
            (status,) = await store.put_media([media], max_memory_percent=limit)
            check_stored(status)

        with broker_errors(self._url):
            await self._shards.do_everywhere(put)
        return media.id
