"""Draft corpora: which finished jobs later jobs of the same template may draft tokens from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import Cipher, Unopened
from batchmill.producer.protocol.opening import open_tokens
from batchmill.producer.protocol.token_bytes import decode_tokens

from .call import Read, stored


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus of a tenant."""

    tenant: str
    #: Hexadecimal digits: of the engine's identity, and of what its jobs have in common.
    digest: str
    #: Of more, those whose records expire first leave it.
    max_jobs: int


def corpus_jobs(corpus: Corpus) -> Read[list[str]]:
    """Read the jobs of a corpus whose records have not expired, the newest first.

    Empty if another program has written something else under its name.
    """

    def queue(pipeline: Any) -> None:
        pipeline.time()
        name = keys.corpus(corpus.tenant, corpus.digest)
        pipeline.zrevrange(name, 0, corpus.max_jobs - 1, withscores=True)

    def parse(replies: list[Any]) -> list[str]:
        now, entries = replies
        seconds, microseconds = stored(now)
        now_ms = seconds * 1000 + microseconds // 1000
        return [
            job_id.decode(errors="replace")
            for job_id, until_ms in stored(entries, default=())
            if until_ms > now_ms
        ]

    return Read(queue, parse, keeps_errors=True)


def corpus_outputs(job_ids: Sequence[str]) -> Read[list[list[int]]]:
    """Read the output tokens of jobs, in order; none for each that is gone or cannot be opened."""

    def queue(pipeline: Any) -> None:
        for job_id in job_ids:
            pipeline.get(keys.tokens(job_id))
            pipeline.hgetall(keys.seals(job_id))

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        found: list[Any] = []
        for job_id, data, seals in zip(job_ids, replies[::2], replies[1::2], strict=True):
            known = seals if isinstance(seals, Mapping) else {}
            found += [open_tokens(cipher, job_id, data, known, must_be_sealed=bool(known)), known]
        return found

    def parse(replies: list[Any]) -> list[list[int]]:
        return [_tokens_of(reply) for reply in replies[::2]]

    return Read(queue, parse, keeps_errors=True, opens=opens)


def _tokens_of(reply: Any) -> list[int]:
    """Return tokens as they were stored; none if they are gone, sealed or malformed."""
    if isinstance(reply, Unopened):
        return []
    data = stored(reply)
    is_whole = isinstance(data, bytes) and len(data) % 4 == 0
    return decode_tokens(data) if is_whole else []
