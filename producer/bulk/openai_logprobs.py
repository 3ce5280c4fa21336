"""A result's log probabilities in OpenAI's two shapes: of chats, and of completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchmill.producer.result_parts import LogprobDetails
from batchmill.producer.results import Completion, JobResult


def chat_logprobs(result: JobResult, completion: Completion) -> dict[str, Any] | None:
    """Return the `logprobs` of a choice of `/v1/chat/completions`; None if there are none."""
    details = result.logprob_details
    if details is None or details.num_top is None:
        return None
    content = []
    for token_id, logprobs in _scored(completion.logprobs or []):
        best = sorted(logprobs.items(), key=lambda each: -each[1])[: details.num_top]
        found = dict(best)
        found |= {each: logprobs[each] for each in details.asked_token_ids if each in logprobs}
        top = [_chat_token(details, *each) for each in found.items()]
        own = _chat_token(details, token_id, logprobs[token_id])
        content.append(own | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(result: JobResult, completion: Completion) -> dict[str, Any] | None:
    """Return the `logprobs` of a choice of `/v1/completions`; None if there are none.

    With `echo` they begin with the tokens of the prompt. As in OpenAI's API, the first of these has
    null for its log probability, because nothing precedes it.
    """
    details = result.logprob_details
    if details is None or details.num_top is None:
        return None
    scored: list[tuple[int, Mapping[int, float] | None]] = []
    if details.echoed_token_ids:
        prompt = result.prompt_logprobs or [None]
        scored += zip(details.echoed_token_ids, prompt, strict=False)
    scored += _scored(completion.logprobs or [])
    tokens = [_bytes_of(details, token_id) for token_id, _ in scored]
    return {
        "tokens": [_legacy_text(token) for token in tokens],
        "token_logprobs": [each and each[token_id] for token_id, each in scored],
        "top_logprobs": [
            each and {_legacy_text(_bytes_of(details, top)): each[top] for top in each}
            for _, each in scored
        ],
        "text_offset": list(_offsets(completion.text, tokens)),
    }


def _scored(
    logprobs: Sequence[Mapping[int, float] | None],
) -> Iterator[tuple[int, Mapping[int, float]]]:
    """Yield each token and the log probabilities at its place, its own first."""
    for each in logprobs:
        if each:
            yield next(iter(each)), each


def _chat_token(details: LogprobDetails, token_id: int, logprob: float) -> dict[str, Any]:
    token = _bytes_of(details, token_id)
    return {"token": token.decode(errors="replace"), "bytes": list(token), "logprob": logprob}


def _bytes_of(details: LogprobDetails, token_id: int) -> bytes:
    return details.token_bytes.get(token_id, f"token_id:{token_id}".encode())


def _legacy_text(token: bytes) -> str:
    """Return a token's text; parts of characters are escaped, so that no two tokens are equal."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _offsets(text: str, tokens: Sequence[bytes]) -> Iterator[int]:
    """Yield the character at which each token begins in the text.

    A token that the text leaves out, as it leaves out special tokens, takes no characters; and the
    text may lack the space with which some vocabularies begin their first token.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offset = 0
    for token in tokens:
        yield offset
        piece = decoder.decode(token)
        for part in (piece, piece.removeprefix(" ")):
            if part and text.startswith(part, offset):
                offset += len(part)
                break
