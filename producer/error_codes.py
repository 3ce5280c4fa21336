"""Every error code: what it means, what to do, whether to try again, and where it appears.

A code is the same everywhere: `code` of a Python exception, of the JSON that a command writes, of a
record's error (and so of results, webhooks and batches), and the reason of a dead letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: An exception of the Python clients, and `--json` of the commands that use them.
SUBMIT: Final = "Python and commands"
#: `--json` of a command alone.
COMMAND: Final = "commands"
#: A response of the gateway.
GATEWAY: Final = "gateway"
#: The error of a job's record: in results, webhooks and batches, and as `JobFailed` in Celery.
RECORD: Final = "records and webhooks"
#: The error of a batch.
BATCH: Final = "batches"
#: The reason of a dead letter of the inbox, or of a Celery message.
LETTER: Final = "dead letters"


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One code of the registry."""

    code: str
    #: What has happened.
    meaning: str
    #: What the caller or the operator does.
    remedy: str
    #: Where it appears.
    places: tuple[str, ...]
    #: Whether the same job or call may succeed later without a change.
    retryable: bool = False


_NOT_JSON = "send a JSON object in UTF-8"
_CELERY = "send the task with Celery's protocol 2 and JSON"

ERROR_CODES: Final = (
    ErrorCode(
        "invalid_request",
        "A field of the job is missing, unknown, or out of range.",
        "correct the field that `param` and the message name",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "unsupported_parameter",
        "A parameter of other engines that this version does not support.",
        "leave it out, or use what the message names",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "structure_too_complex",
        "A schema or a grammar exceeds a limit of time, memory, nesting or rules.",
        "simplify it",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "structure_check_unavailable",
        "No process can be started that checks a schema or a grammar.",
        "try again; give the machine memory and processes",
        (SUBMIT, RECORD),
        retryable=True,
    ),
    ErrorCode(
        "idempotency_conflict",
        "The idempotency key belongs to a job or a batch with other content.",
        "use a new key for other content",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "queue_full",
        "A limit on waiting jobs or on Redis' memory is reached.",
        "try again later; the operator adds workers or raises the limit",
        (SUBMIT,),
        retryable=True,
    ),
    ErrorCode(
        "queue_paused",
        "The operator has paused the queue or the tenant, and it refuses jobs.",
        "try again later, or `batchmill resume`",
        (SUBMIT,),
        retryable=True,
    ),
    ErrorCode(
        "job_too_large",
        "The job alone may need more of Redis' memory than there may be.",
        "ask for fewer tokens, samples or log probabilities, or raise `maxmemory`",
        (SUBMIT,),
    ),
    ErrorCode(
        "batch_closed",
        "The batch does not exist, or takes no more lines.",
        "create a new batch",
        (SUBMIT,),
    ),
    ErrorCode(
        "batch_cancelled",
        "The batch was cancelled and takes no more lines.",
        "create a new batch",
        (SUBMIT,),
    ),
    ErrorCode(
        "batch_expired",
        "The batch's time to live has ended, and it takes no more lines.",
        "create a new batch",
        (SUBMIT,),
    ),
    ErrorCode(
        "invalid_line",
        "A line of a bulk or batch file is not a job.",
        "correct the line that the message names",
        (SUBMIT,),
    ),
    ErrorCode(
        "not_json",
        "A document is not JSON in UTF-8, is nested too deeply, or has NaN or Infinity.",
        _NOT_JSON,
        (SUBMIT, LETTER),
    ),
    ErrorCode("not_an_object", "A document is JSON, but not an object.", _NOT_JSON, (LETTER,)),
    ErrorCode(
        "duplicate_key",
        "A JSON object has a key twice.",
        "give each key once",
        (SUBMIT, LETTER),
    ),
    ErrorCode(
        "duplicate_id", "The id belongs to a job with other content.", "use a new id", (LETTER,)
    ),
    ErrorCode(
        "timeout",
        "The job has not ended within the caller's time; it continues.",
        "wait again, or cancel it; the message says why it waits",
        (SUBMIT,),
        retryable=True,
    ),
    ErrorCode(
        "unknown_job",
        "No job has this id: never submitted, forgotten, or its time to live has run out.",
        "check the id, and the broker",
        (SUBMIT,),
    ),
    ErrorCode(
        "unknown_batch",
        "No batch has this id: never created, or its time to live has run out.",
        "check the id, and the broker",
        (SUBMIT,),
    ),
    ErrorCode(
        "wrong_state",
        "A job cannot be retried or forgotten in its state; nothing was changed.",
        "cancel it first, or wait for its end",
        (SUBMIT,),
    ),
    ErrorCode(
        "invalid_query",
        "A tag, tenant, state, cursor or limit, or a position in an output, is invalid.",
        "correct the value that the message names",
        (SUBMIT,),
    ),
    ErrorCode(
        "broker_unavailable",
        "No broker is known, or it does not reply in time.",
        "start it or correct its URL; with an idempotency key, the same call is safe to repeat",
        (SUBMIT,),
        retryable=True,
    ),
    ErrorCode(
        "unsupported_broker",
        "The server is too old, or runs in cluster mode.",
        "use Redis or Valkey without cluster mode, as the message says",
        (SUBMIT,),
    ),
    ErrorCode(
        "shard_mismatch",
        "A broker is another shard than the list says, or belongs to another list of shards.",
        "give all programs the same `BATCHMILL_BROKER_URLS`, as the message says",
        (SUBMIT,),
    ),
    ErrorCode(
        "not_replicated",
        "The job is stored and runs, but too few replicas have it.",
        "follow it by the `job_ids`; look at the replicas",
        (SUBMIT,),
    ),
    ErrorCode(
        "unusable_record",
        "A key in Redis holds data that batchmill did not write.",
        "find and delete the key, or use another id or idempotency key",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "output_restarted",
        "A stream cannot continue: the job was started over.",
        "read the stream from its start",
        (SUBMIT,),
        retryable=True,
    ),
    ErrorCode(
        "encryption_unavailable",
        "Encryption keys are set and malformed, or a package is missing.",
        "do what the message says",
        (SUBMIT,),
    ),
    ErrorCode(
        "missing_key",
        "Content is sealed with a key that the program does not have.",
        "add the key that the message names to `BATCHMILL_ENCRYPTION_KEYS`",
        (SUBMIT,),
    ),
    ErrorCode(
        "integrity",
        "Content was changed in Redis or in the object store after it was stored.",
        "find out who writes there; submit the job again",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "payloads_unavailable",
        "An object store is set and cannot be used, or a package is missing.",
        "do what the message says",
        (SUBMIT,),
    ),
    ErrorCode(
        "payload_unreachable",
        "A prompt or a result could not be written to the object store, or read from it, in time.",
        "see whether the store can be reached; try again",
        (SUBMIT, RECORD),
        retryable=True,
    ),
    ErrorCode(
        "payload_missing",
        "A prompt or a result is not in the object store, or the program has no such store.",
        "set `BATCHMILL_PAYLOAD_URL` as for the program that stored it, or submit the job again",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "media_missing",
        "A picture or a sound is not stored for the job's tenant, or not any more.",
        "store it again with `put_media`, or send it with the job",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "media_invalid",
        "A picture or a sound is empty, damaged, or in a format that is not read.",
        "send PNG, JPEG, WebP or GIF; or WAV, FLAC, Ogg or MP3",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "media_too_large",
        "A picture or a sound exceeds a limit of bytes, pixels, seconds or memory.",
        "send a smaller one, or raise the setting that the message names",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "media_refused",
        "The URL of a picture or a sound may not be fetched, or its server refuses to send it.",
        "send the content itself, or a URL that anyone may fetch",
        (RECORD,),
    ),
    ErrorCode(
        "media_unreachable",
        "The server of a picture or a sound did not send it, or Redis had no room for it.",
        "see whether the server responds, and submit the job again",
        (RECORD,),
        retryable=True,
    ),
    ErrorCode(
        "media_unavailable",
        "No worker has the packages that decode pictures and sounds.",
        "install the extra `media`, as the message says",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "traces_unavailable",
        "Spans are asked for and cannot be made.",
        "do what the message says",
        (SUBMIT,),
    ),
    ErrorCode(
        "wrong_event_loop",
        "An asyncio client was used in another event loop than that of its connections.",
        "make one client per loop",
        (SUBMIT,),
    ),
    ErrorCode(
        "invalid_signature",
        "A webhook's signature, timestamp or form is wrong.",
        "respond 401 and trust no content; compare the secrets and the clocks",
        (SUBMIT,),
    ),
    ErrorCode(
        "bulk_file",
        "A file of a bulk run is missing, wrong, in use, or does not belong to the run.",
        "do what the message says",
        (SUBMIT,),
    ),
    ErrorCode(
        "tenant_refused",
        "A tenant's name, weight, limit or window is invalid.",
        "correct the value that the message names",
        (SUBMIT,),
    ),
    ErrorCode("error", "An error without a code of its own.", "read the message", (SUBMIT,)),
    ErrorCode(
        "cancelled", "The job was cancelled.", "retry it if that was a mistake", (SUBMIT, RECORD)
    ),
    ErrorCode(
        "deadline_exceeded",
        "The job's deadline passed before it was done.",
        "give it more time, or add workers",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "time_limit_exceeded",
        "The job took longer than the time limit of its Celery task.",
        "raise the limit, or ask for fewer tokens",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "not_served",
        "No worker served the job's model for a long time.",
        "start a worker with that model, then retry the job",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "attempts_exhausted",
        "The job brought the engine down too often, or lost too many workers.",
        "`batchmill dead-letters show ID` has each attempt; the worker's log has the reason",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "context_length_exceeded",
        "The prompt leaves no room in the model's context.",
        "shorten it, or set `truncate_prompt_tokens`",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "chat_too_complex",
        "The chat takes too long to render with the model's template.",
        "shorten the chat, or simplify its tools",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "adapter_not_found",
        "No LoRA adapter or steering vector has this name, or it is not for the tenant.",
        "use one that `batchmill lora list` or `batchmill steering list` shows, or add it",
        (SUBMIT, RECORD, LETTER),
    ),
    ErrorCode(
        "adapter_unavailable",
        "The files of the LoRA adapter could not be read any more.",
        "add the adapter again, and submit again",
        (RECORD,),
    ),
    ErrorCode(
        "media_failed",
        "A picture or sound could not be turned into the model's features.",
        "send another one; if it happens with each, report the model",
        (RECORD,),
    ),
    ErrorCode(
        "numerical_error",
        "The model computed numbers that are not finite for this job.",
        "report the prompt and the model; the same job fails again",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "low_confidence",
        "An answer of a decision is less confident than the job demands.",
        "decide it otherwise; the result has the answers",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "no_token_left",
        "The job's own controls forbid every next token.",
        "relax `allowed_token_ids`, `bad_words` or `logit_bias`",
        (SUBMIT, RECORD),
    ),
    ErrorCode(
        "out_of_memory",
        "Memory ran out for this job alone.",
        "try again; ask for less, or give the worker more memory",
        (SUBMIT, RECORD),
        retryable=True,
    ),
    ErrorCode(
        "engine_error",
        "The engine failed on this job.",
        "try again; the worker's log has the reason",
        (SUBMIT, RECORD),
        retryable=True,
    ),
    ErrorCode(
        "internal_error",
        "The worker failed on this job.",
        "try again, and report it with the worker's log",
        (SUBMIT, RECORD, LETTER),
        retryable=True,
    ),
    ErrorCode(
        "records_lost",
        "Records of the batch's jobs were deleted or evicted before they had ended.",
        "set `maxmemory-policy noeviction`",
        (BATCH,),
    ),
    ErrorCode(
        "batch_abandoned",
        "No line arrived for 24 hours, and the batch was not sealed.",
        "create it again with its idempotency key",
        (BATCH,),
    ),
    ErrorCode(
        "input_failed",
        "The input of a batch failed while it was read.",
        "correct the input, and create the batch again",
        (BATCH,),
    ),
)
