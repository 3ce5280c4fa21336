"""The bodies that several APIs share, and those of OpenAI's completions and batches."""

from __future__ import annotations

from batchmill.producer.job.batch import BatchRequest
from batchmill.worker.gateway.openai_api import BATCH_ENDPOINTS

from .body import Body, BodyField, mapped, no_effect, refused, taken
from .shapes import FLAG, NULL, TEXT, choice, either, items, record

#: Tiers of OpenAI and Anthropic, and the classes of jobs that they ask for.
SERVICE_TIERS = {
    "auto": None,
    "default": "normal",
    "standard_only": "normal",
    "flex": "low",
    "priority": "high",
    "scale": "high",
}
#: Fields of OpenAI's that say who the caller's user is, or advise a cache.
USER_FIELDS = (
    no_effect("user", "nothing depends on it; `tenant` is the key's"),
    no_effect("safety_identifier", "nothing depends on it"),
    no_effect("prompt_cache_key", "prefixes are cached without it; `cache_salt` separates"),
    no_effect("prompt_cache_retention", "prefixes are cached as long as there is room"),
)
STREAM = mapped("stream", "send events as tokens are checkpointed", FLAG)
STREAM_OPTIONS = mapped(
    "stream_options",
    "`include_usage` ends the stream with the usage; `include_obfuscation` is refused",
    either(record({}, {"include_usage": FLAG, "include_obfuscation": choice(False)}), NULL),
)
CANCELS = mapped(
    "cancel_on_disconnect", "cancel the job if the client goes away; else it goes on", FLAG
)
TIER = mapped(
    "service_tier",
    "the class of the job: `flex` is `low`, `default` is `normal`, `priority` and `scale` are "
    "`high`; `auto` leaves it to the key",
    choice(*SERVICE_TIERS),
)
_CONNECTION = (STREAM, STREAM_OPTIONS, CANCELS)
#: Fields of both kinds of completions that are those of a job.
_SAMPLING = (
    *("model", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "max_tokens"),
    *("n", "seed", "stop", "temperature", "top_p"),
)

CHAT = Body(
    "ChatCompletionRequest",
    fields=(
        *_CONNECTION,
        TIER,
        *USER_FIELDS,
        refused("moderation"),
        refused("prompt_cache_options"),
    ),
    own=(
        *_SAMPLING,
        *("messages", "max_completion_tokens", "metadata", "parallel_tool_calls", "tools"),
        *("response_format", "tool_choice", "top_logprobs", "audio", "function_call", "functions"),
        *("modalities", "prediction", "reasoning_effort", "store", "verbosity"),
        "web_search_options",
    ),
    required=("messages",),
    not_taken=("prompt",),
)
_TOKENS = items({"type": "integer", "minimum": 0, "maximum": 2**32 - 1})
_PROMPT = {"type": "string", "minLength": 1}
COMPLETION = Body(
    "CompletionRequest",
    fields=(
        taken(
            "prompt",
            "a text, or token ids; a list of several is a job for each, whole only",
            either(_PROMPT, _TOKENS, items(_PROMPT, most=128), items(_TOKENS, most=128)),
        ),
        *_CONNECTION,
        TIER,
        *USER_FIELDS,
    ),
    own=(*_SAMPLING, "best_of", "echo", "suffix"),
    required=("prompt",),
    not_taken=("messages",),
)

_BATCH = BatchRequest.model_json_schema()["properties"]


def _of_batch(name: str, meaning: str) -> BodyField:
    return taken(name, meaning, either(_BATCH[name], NULL))


BATCH = Body(
    "BatchCreateRequest",
    fields=(
        mapped("input_file_id", "an uploaded file, whose lines become jobs", TEXT),
        mapped("endpoint", "the path that every line names", {"enum": list(BATCH_ENDPOINTS)}),
        mapped(
            "completion_window",
            "minutes, hours or days such as `24h`; lines that have not ended by then expire",
            {"type": "string", "pattern": "^[1-9][0-9]{0,2}[mhd]$"},
        ),
        _of_batch("metadata", "your own data, returned with the batch and in its webhook"),
        _of_batch("webhook", "receives one signed POST when the batch ends"),
        _of_batch("webhook_events_filter", "ends of the batch to send; by default, all four"),
        _of_batch("webhook_secret", "name of the operator's secret to sign with"),
        refused("output_expires_after", meaning="results are kept for `BATCHMILL_RESULT_TTL_S`"),
        refused("ttl_s", meaning="use `completion_window`"),
        refused("idempotency_key", meaning="use the header `Idempotency-Key`"),
        refused("tenant", meaning="it is fixed by the API key"),
    ),
    required=("input_file_id", "endpoint", "completion_window"),
    takes_job=False,
)
