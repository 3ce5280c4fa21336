"""The beginning of a job's prompt, by which workers find jobs that share cached blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from .document import GenerationJob
from .media_parts import MediaPart
from .messages import TextPart

#: Characters of the beginning that must be equal. A shorter prompt has no prefix worth sharing.
_NUM_CHARS: Final = 512
#: The same for a prompt of token ids.
_NUM_TOKENS: Final = 128


def prefix_digest(job: GenerationJob) -> str:
    """Return a digest of the beginning of a job's prompt; empty if it is too short.

    Jobs with equal digests have the same instructions or the same template, as a rule. It is a
    hint: what the engine shares, it decides by the tokens.
    """
    if job.section is not None:
        return ""
    if isinstance(job.prompt, list):
        text = " ".join(map(str, job.prompt[:_NUM_TOKENS]))
        is_long = len(job.prompt) >= _NUM_TOKENS
    else:
        text = _beginning(_pieces(job))
        is_long = len(text) >= _NUM_CHARS
    if not is_long:
        return ""
    steered = "" if job.steering is None else f"{job.steering.model_dump_json()}\0"
    salted = f"{job.cache_salt or ''}\0{steered}{text}".encode(errors="surrogatepass")
    return hashlib.blake2b(salted, digest_size=8).hexdigest()


def _pieces(job: GenerationJob) -> Iterator[str]:
    """Yield the parts of a prompt in about the order in which a template writes them."""
    if isinstance(job.prompt, str):
        yield job.prompt
    for tool in job.tools:
        yield tool.model_dump_json()
    for message in job.messages or ():
        yield f"\0{message.role}"
        for part in message.parts:
            yield f"\0{part.text}" if isinstance(part, TextPart) else _media_piece(part)


def _media_piece(part: MediaPart) -> str:
    """Return what stands for a picture or a sound: long enough, for it has hundreds of tokens."""
    return f"\0{part.type} {part.media or part.url}".ljust(_NUM_CHARS)


def _beginning(pieces: Iterator[str]) -> str:
    text = ""
    for piece in pieces:
        text += piece[: _NUM_CHARS - len(text)]
        if len(text) >= _NUM_CHARS:
            break
    return text
