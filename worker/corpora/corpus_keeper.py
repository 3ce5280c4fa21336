"""Keeps the outputs of the corpora in use, and gives them to the engine."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchmill.producer.protocol.calls.corpora import Corpus, corpus_jobs, corpus_outputs
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.messages import SetDraftCorpus

#: How often the keeper looks whether a corpus is due.
LOOK_INTERVAL_S: Final = 0.5
#: Seconds between two reads of a corpus that is full; one that still grows is read more often.
_REFRESH_S: Final = 10.0
_GROWING_REFRESH_S: Final = 1.0
#: Seconds after the last claim of one of its jobs after which a corpus is dropped.
_IDLE_S: Final = 60.0
#: Corpora that are kept at once. Of more, those whose jobs were claimed longest ago are dropped.
_MAX_CORPORA: Final = 32
#: Tokens of a corpus that are kept, those of the newest jobs: the index of so many is built in
#: about 30 ms.
_MAX_TOKENS: Final = 65_536
#: Outputs that are read at once.
_PAGE: Final = 32
#: Once a corpus is full, one of so many jobs replaces the oldest.
_LEARNS_OF_FULL: Final = 8


@dataclass(slots=True)
class _Kept:
    used_at: float
    read_at: float | None = None
    outputs: dict[str, array[int]] = field(default_factory=dict)
    #: Whether it has as many jobs or tokens as it may have.
    is_full: bool = False
    is_sent: bool = True

    def is_due(self, now: float) -> bool:
        refresh_s = _REFRESH_S if self.is_full else _GROWING_REFRESH_S
        return self.read_at is None or now - self.read_at >= refresh_s


class CorpusKeeper:
    """Reads the corpora of the jobs that this worker claims, again and again while it claims some.

    So an output that was forgotten, or has expired, leaves this process and the engine's at the
    next read, or with the corpus. While no job has a corpus, nothing is read. Thread-safe: the
    event loop and threads that prepare jobs note claims, and one thread calls `look`.
    """

    def __init__(
        self,
        store: JobStore,
        send: Callable[[SetDraftCorpus], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind to the store, and to the function that sends messages to the engine."""
        self._store = store
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        # The least recently used first.
        self._corpora: OrderedDict[Corpus, _Kept] = OrderedDict()
        self._rng = random.Random()

    def __len__(self) -> int:
        """Return how many corpora are kept."""
        return len(self._corpora)

    def note_claim(self, corpus: Corpus) -> bool:
        """Note that a job of a corpus goes to the engine; return whether its output is to be kept.

        A full corpus needs few new outputs, and each costs a few commands in Redis.
        """
        with self._lock:
            kept = self._corpora.setdefault(corpus, _Kept(self._clock()))
            kept.used_at = self._clock()
            self._corpora.move_to_end(corpus)
        return not kept.is_full or self._rng.randrange(_LEARNS_OF_FULL) == 0

    def note_new_engine(self) -> None:
        """Send all corpora again: a new engine has none."""
        with self._lock:
            for kept in self._corpora.values():
                kept.is_sent = not kept.outputs

    def look(self) -> None:
        """Read the corpora that are due, send those that have changed, and drop the unused.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call reads the rest.
        """
        self._drop_unused()
        now = self._clock()
        with self._lock:
            corpora = list(self._corpora.items())
        for corpus, kept in corpora:
            if kept.is_due(now):
                self._read(corpus, kept)
                kept.read_at = now
            if not kept.is_sent:
                kept.is_sent = True
                self._send(SetDraftCorpus(engine_name(corpus), list(kept.outputs.values())))

    def _drop_unused(self) -> None:
        until = self._clock() - _IDLE_S
        with self._lock:
            surplus = len(self._corpora) - _MAX_CORPORA
            unused = [
                corpus
                for place, (corpus, kept) in enumerate(self._corpora.items())
                if place < surplus or kept.used_at <= until
            ]
            for corpus in unused:
                del self._corpora[corpus]
        for corpus in unused:
            self._send(SetDraftCorpus(engine_name(corpus), ()))

    def _read(self, corpus: Corpus, kept: _Kept) -> None:
        """Read which outputs a corpus has, and those that are new."""
        job_ids = self._store.read(corpus_jobs(corpus))
        outputs: dict[str, array[int]] = {}
        num_tokens = 0
        for job_id, output in self._newest(job_ids, kept.outputs):
            num_tokens += len(output)
            if num_tokens > _MAX_TOKENS:
                break
            outputs[job_id] = output
        kept.is_full = num_tokens > _MAX_TOKENS or len(outputs) >= corpus.max_jobs
        if outputs.keys() != kept.outputs.keys():
            kept.outputs, kept.is_sent = outputs, False

    def _newest(
        self, job_ids: Sequence[str], known: Mapping[str, array[int]]
    ) -> Iterator[tuple[str, array[int]]]:
        """Yield jobs with their outputs; those that are not known are read as they are needed."""
        for start in range(0, len(job_ids), _PAGE):
            page = job_ids[start : start + _PAGE]
            missing = [job_id for job_id in page if job_id not in known]
            new: Sequence[list[int]] = self._store.read(corpus_outputs(missing)) if missing else ()
            found = dict(zip(missing, (array("I", each) for each in new), strict=True))
            for job_id in page:
                yield job_id, known[job_id] if job_id in known else found[job_id]


def engine_name(corpus: Corpus) -> str:
    """Return the engine's name of a corpus, which no other tenant's corpus has."""
    return f"{corpus.tenant}:{corpus.digest}"
