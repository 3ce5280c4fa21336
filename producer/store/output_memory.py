"""How much of Redis' memory a job's output may take: reserved from its submission to its end."""

from __future__ import annotations

from typing import Final

from batchmill.producer.job.document import GenerationJob

# Measured on the demo model's English text, and rounded up: docs/BENCHMARKS.md, "Memory of a job".
#: Of an ended job besides its output: fields of the record, the result's frame, index entries.
_ENDED_JOB_BYTES: Final = 2048
#: Of each further sample's frame in the result.
_SAMPLE_BYTES: Final = 256
#: Text, and the token id in its own key or in the sample.
_TOKEN_BYTES: Final = 16
_ENTROPY_BYTES: Final = 20
#: Of one token with log probabilities: its braces, and each of its candidates.
_LOGPROBS_BYTES: Final = 10
_CANDIDATE_BYTES: Final = 30
_CONFIDENCE_BYTES: Final = 160
#: Of a token of each running and each finished beam, before what they share is compressed.
_SAVED_TOKEN_BYTES: Final = 6
#: Of the event of the job's end, and of its body without and with the output.
_EVENT_BYTES: Final = 3072
_MAX_EVENT_OUTPUT_BYTES: Final = 16 * 1024


def output_bytes(job: GenerationJob, num_prompt_tokens: int) -> int:
    """Return the bytes that the tokens, text, result and webhook of a job may take at most.

    The longest output is assumed. Its text is estimated: unusual text, of long or escaped tokens,
    may take more.

    Args:
        job: the job.
        num_prompt_tokens: its prompt's tokens, which `prompt_logprobs` reports on.
    """
    section = job.section
    if section is not None:
        return _ENDED_JOB_BYTES + section.num_result_bytes + _event_bytes(job, 0)
    num_tokens = job.max_tokens * job.n
    asked = job.logprob_token_ids
    num_candidates = job.logprobs if asked is None else (job.logprobs or 0) + len(asked)
    per_token = _TOKEN_BYTES + _logprobs_bytes(num_candidates)
    if job.entropy:
        per_token += _ENTROPY_BYTES
    total = _ENDED_JOB_BYTES + (job.n - 1) * _SAMPLE_BYTES + num_tokens * per_token
    num_scored = num_prompt_tokens * (job.n if job.echo else 1)
    total += num_prompt_tokens * _logprobs_bytes(job.prompt_logprobs)
    if job.explain:
        total += _explanation_bytes(job, num_prompt_tokens)
    if job.select is not None:
        total += job.n * job.select.num_result_bytes_per_sample
    if job.echo:
        total += num_scored * per_token
    if job.beam_search is not None:
        total += 2 * job.beam_search.beam_width * job.max_tokens * _SAVED_TOKEN_BYTES
    return total + _event_bytes(job, num_tokens)


def _explanation_bytes(job: GenerationJob, num_prompt_tokens: int) -> int:
    """Return the bytes of an explanation: figures per token, the input's parts, further texts."""
    num_texts = {"attribution": num_prompt_tokens, "uncertainty": 8 * job.max_tokens}
    num_tokens = job.max_tokens + sum(num_texts.get(part, 0) for part in job.explain)
    return job.max_tokens * _CONFIDENCE_BYTES + num_tokens * _TOKEN_BYTES


def _event_bytes(job: GenerationJob, num_tokens: int) -> int:
    """Return the bytes of the webhook event of a job's end, and of its body."""
    if job.webhook is None:
        return 0
    output_bytes = num_tokens * _TOKEN_BYTES if job.include_output else 0
    return _EVENT_BYTES + min(output_bytes, _MAX_EVENT_OUTPUT_BYTES)


def _logprobs_bytes(num_candidates: int | None) -> int:
    """Return the bytes of one token's log probabilities: its own, and those of candidates."""
    if num_candidates is None:
        return 0
    return _LOGPROBS_BYTES + (num_candidates + 1) * _CANDIDATE_BYTES
