"""The corpus of a job: which finished jobs it may take draft tokens from."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.corpora import Corpus
from batchmill.producer.protocol.replies import Claim

CorpusMode = Literal["off", "named", "auto"]
#: What a job names instead of a corpus if it is to use and teach none.
NO_CORPUS: Final = "off"


def corpus_of(
    claim: Claim, document: GenerationJob, mode: CorpusMode, max_jobs: int
) -> Corpus | None:
    """Return the corpus of a claimed job; None if it has none.

    Jobs share a corpus if they have the same tenant and `cache_salt`, the same engine identity, the
    same adapter and steering vector, and the same template: the name that they give, or the
    beginning of the prompt.
    """
    name = document.draft_corpus
    if mode == "off" or name == NO_CORPUS or document.plan[0] is not None:
        return None
    if name is not None:
        template = f"name\0{name}"
    elif mode == "auto" and claim.prefix:
        template = f"prefix\0{claim.prefix}"
    else:
        return None
    salt = document.cache_salt or ""
    parts = (claim.identity, claim.lora or "", claim.steering or "", salt, template)
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    return Corpus(document.tenant or keys.DEFAULT_TENANT, digest, max_jobs)
