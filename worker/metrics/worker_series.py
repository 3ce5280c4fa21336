"""The series of a worker. Those that vLLM has, too, have its names under our prefix."""

from __future__ import annotations

from typing import Final

from .series import Kind, Series

_LATENCY_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0),
    *(100.0, 250.0, 500.0, 1000.0, 2500.0),
)
#: A batch job may wait for days.
_WAIT_S: Final = (
    *(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0),
    *(86_400.0, 259_200.0),
)
_STEP_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5),
    *(5.0, 10.0),
)
_TOKENS: Final = tuple(float(2**power) for power in range(18))
_SHARES: Final = tuple(step / 10 for step in range(1, 11))


def _gauge(name: str, meaning: str, *labels: str) -> Series:
    return Series(f"batchmill_{name}", Kind.GAUGE, meaning, labels)


def _counter(name: str, meaning: str, *labels: str) -> Series:
    return Series(f"batchmill_{name}_total", Kind.COUNTER, meaning, labels)


def _histogram(name: str, meaning: str, bounds: tuple[float, ...]) -> Series:
    return Series(f"batchmill_{name}", Kind.HISTOGRAM, meaning, (), bounds)


# Now.
RUNNING: Final = _gauge("num_requests_running", "Requests that the engine computes.")
WAITING: Final = _gauge(
    "num_requests_waiting", "Requests in the engine that wait, preempted ones included."
)
WAITING_BY_REASON: Final = _gauge(
    "num_requests_waiting_by_reason",
    "Claimed jobs that are not computed: `capacity` (they wait in the engine) or `isolation` (they "
    "must not run beside others, or no engine is ready).",
    "reason",
)
KV_CACHE_USAGE: Final = _gauge(
    "kv_cache_usage_perc", "Share of the KV blocks that requests hold, from 0 to 1."
)
CACHE_CONFIG: Final = _gauge(
    "cache_config_info",
    "Always 1; the labels show the KV cache.",
    "num_blocks",
    "block_size",
    "dtype",
)
NUM_RANKS: Final = _gauge(
    "tensor_parallel_size", "Ranks that compute the model together; missing until one is loaded."
)
MAX_SEQS: Final = _gauge("max_num_seqs", "Requests that the engine computes together at most.")
ACTIVE_JOBS: Final = _gauge("active_jobs", "Jobs that the worker holds.")
MEDIA_CACHE_BYTES: Final = _gauge(
    "mm_cache_bytes",
    "Memory that the features of pictures and sounds take; missing if the model takes none.",
)
KV_HOST_BYTES: Final = _gauge(
    "kv_host_bytes",
    "Host memory that KV blocks take on each rank; missing if `BATCHMILL_KV_HOST_BYTES` is 0.",
)
UNSAVED_TOKENS: Final = _gauge("unsaved_tokens", "Generated tokens that no checkpoint holds yet.")
ENGINE_READY: Final = _gauge("engine_ready", "1 if a model is loaded, otherwise 0.")
ENGINE_STALLED: Final = _gauge(
    "engine_stalled_seconds", "Seconds for which the engine's loop has stood still."
)
BROKER_SILENT: Final = _gauge(
    "broker_silent_seconds", "Seconds since the last heartbeat that Redis took."
)
BUSY_SPEED: Final = _gauge(
    "busy_tokens_per_second",
    "Tokens per second, prompts included, with the fullest batches lately; missing before.",
)
GPU_MEMORY_USED: Final = _gauge("gpu_memory_used_bytes", "Memory in use of the GPU (NVML).", "gpu")
GPU_MEMORY_TOTAL: Final = _gauge("gpu_memory_total_bytes", "Memory of the GPU (NVML).", "gpu")
GPU_UTILISATION: Final = _gauge(
    "gpu_utilization_ratio", "Share of time in which the GPU computed, from 0 to 1 (NVML).", "gpu"
)
GPU_XID_ERRORS: Final = _counter(
    "gpu_xid_errors",
    "Errors of the GPU that its driver reported, by their Xid (NVML).",
    "gpu",
    "xid",
)

# Tokens and requests.
PROMPT_TOKENS: Final = _counter("prompt_tokens", "Prompt tokens of requests that ended.")
PROMPT_TOKENS_CACHED: Final = _counter(
    "prompt_tokens_cached", "Of these, those that came from the prefix cache."
)
GENERATION_TOKENS: Final = _counter("generation_tokens", "Tokens that the engine generated.")
PREFIX_QUERIES: Final = _counter(
    "prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache."
)
PREFIX_HITS: Final = _counter("prefix_cache_hits", "Of these, those that were found.")
PREEMPTIONS: Final = _counter(
    "num_preemptions", "Times that a request lost its KV blocks and was computed again."
)
REQUEST_SUCCESS: Final = _counter(
    "request_success",
    "Requests that ended without an error, by finish reason.",
    "finished_reason",
)
CORRUPTED: Final = _counter(
    "corrupted_requests", "Requests whose logits were not finite numbers (`numerical_error`)."
)
REJECTIONS: Final = _counter(
    "admission_rejections",
    "Requests that the engine refused before it computed anything.",
    "reason",
)
DRAFT_TOKENS: Final = _counter(
    "spec_decode_num_draft_tokens",
    "Draft tokens that were computed, by source: `structure`, `corpus` or `prompt`.",
    "source",
)
ACCEPTED_TOKENS: Final = _counter(
    "spec_decode_num_accepted_tokens",
    "Of these, those that were accepted.",
    "source",
)
MEDIA_QUERIES: Final = _counter(
    "mm_cache_queries", "Pictures and sounds whose features were looked up in memory."
)
MEDIA_HITS: Final = _counter("mm_cache_hits", "Of these, those that were found.")
TOWER_RUNS: Final = _counter(
    "tower_runs", "Runs of the tower, which computes the features of several pictures or sounds."
)
TOWER_TIME: Final = _counter("tower_seconds", "Seconds that these took.")
KV_STORED: Final = _counter("kv_host_stored_blocks", "KV blocks copied to host memory.")
KV_RESTORED: Final = _counter(
    "kv_host_restored_blocks", "KV blocks copied back from host memory, instead of computed again."
)
KV_HOST_EVICTED: Final = _counter(
    "kv_host_evicted_blocks", "KV blocks that host memory gave up for others."
)
KV_NOT_STORED: Final = _counter(
    "kv_host_not_stored_blocks",
    "KV blocks that the cache gave up and that were not copied, because computing them again is "
    "faster.",
)
STEPS: Final = _counter("engine_steps", "Steps of the engine.")

# Jobs.
JOBS_CLAIMED: Final = _counter("jobs_claimed", "Jobs that the worker has claimed.")
JOBS_PROCESSED: Final = _counter(
    "jobs_processed",
    "Jobs that left the worker, by their state (`queued`: given back) and the code of their error.",
    "result",
    "reason",
)
JOBS_HANDED_OVER: Final = _counter(
    "jobs_handed_over", "Running or claimed jobs that went to a worker with more room."
)
JOBS_SLICED: Final = _counter(
    "jobs_sliced", "Running jobs that gave way to shorter ones after a time slice."
)
JOBS_TAKEN_OVER: Final = _counter(
    "jobs_taken_over", "Jobs that the worker has taken over from busier ones."
)
RESUMED_TOKENS: Final = _counter(
    "resumed_tokens", "Tokens of earlier attempts from which claimed jobs went on."
)
RECOMPUTED_TOKENS: Final = _counter(
    "recomputed_tokens",
    "Prompt and resumed tokens that ended attempts after a job's first one computed again.",
)
FENCED_WRITES: Final = _counter(
    "fenced_writes",
    "Jobs that were dropped because a write was refused: another claim holds them, or their end "
    "was written already.",
)
OBJECTS: Final = _counter(
    "objects",
    "Documents and results in the object store that the worker has read, written or deleted.",
    "action",
    "result",
)
MEDIA_DECODED: Final = _counter(
    "media_decoded",
    "Pictures and sounds that the worker has decoded, by kind (`image`, `audio`).",
    "kind",
)
AUDIO_TIME: Final = _counter("audio_seconds", "Seconds that the decoded sounds last.")
DECODE_TIME_OF_MEDIA: Final = _counter(
    "media_decode_seconds", "Seconds that decoding pictures and sounds took.", "kind"
)
OBJECT_BYTES: Final = _counter("object_bytes", "Bytes of those read and written.", "action")
ENGINE_RESTARTS: Final = _counter(
    "engine_restarts", "Engine processes that died or were killed, by cause.", "cause"
)

# Histograms.
TTFT: Final = _histogram(
    "time_to_first_token_seconds", "Seconds from a job's claim until its first token.", _LATENCY_S
)
INTER_TOKEN: Final = _histogram(
    "inter_token_latency_seconds",
    "Seconds between two tokens of a request; tokens of one step share its time.",
    _STEP_S,
)
PER_OUTPUT_TOKEN: Final = _histogram(
    "request_time_per_output_token_seconds",
    "Mean seconds between two tokens, per request that ended.",
    _STEP_S,
)
E2E: Final = _histogram(
    "e2e_request_latency_seconds", "Seconds in the engine, per request that ended.", _LATENCY_S
)
QUEUE_TIME: Final = _histogram(
    "request_queue_time_seconds",
    "Seconds in the engine before a request was first computed.",
    _LATENCY_S,
)
PREFILL_TIME: Final = _histogram(
    "request_prefill_time_seconds",
    "Seconds from there to the first token.",
    _LATENCY_S,
)
DECODE_TIME: Final = _histogram(
    "request_decode_time_seconds", "Seconds from the first token to the end.", _LATENCY_S
)
INFERENCE_TIME: Final = _histogram(
    "request_inference_time_seconds", "Prefill and decode together.", _LATENCY_S
)
REQUEST_PROMPT: Final = _histogram(
    "request_prompt_tokens", "Prompt tokens per request that ended.", _TOKENS
)
REQUEST_GENERATION: Final = _histogram(
    "request_generation_tokens", "Output tokens per request that ended, of all samples.", _TOKENS
)
PARAMS_MAX_TOKENS: Final = _histogram(
    "request_params_max_tokens", "`max_tokens` of the jobs that name it.", _TOKENS
)
PARAMS_N: Final = _histogram("request_params_n", "`n` of the jobs.", (1, 2, 5, 10, 20, 50, 100))
STEP_TOKENS: Final = _histogram(
    "iteration_tokens_total", "Tokens per step of the engine; vLLM's name.", _TOKENS
)
STEP_TIME: Final = _histogram("step_time_seconds", "Seconds per step of the engine.", _STEP_S)
OCCUPANCY: Final = _histogram(
    "batch_occupancy_ratio", "Requests in a step over `max_num_seqs`.", _SHARES
)
QUEUE_WAIT: Final = _histogram(
    "job_queue_wait_duration_seconds",
    "Seconds from a job's submission to its first claim, by Redis' clock.",
    _WAIT_S,
)
CHECKPOINT_LAG: Final = _histogram(
    "checkpoint_lag_seconds",
    "Age of the oldest token in a checkpoint when Redis has it.",
    _LATENCY_S,
)

GAUGES: Final = (
    *(
        RUNNING,
        WAITING,
        WAITING_BY_REASON,
        KV_CACHE_USAGE,
        CACHE_CONFIG,
        NUM_RANKS,
        MAX_SEQS,
        ACTIVE_JOBS,
    ),
    *(UNSAVED_TOKENS, ENGINE_READY, ENGINE_STALLED, BROKER_SILENT, BUSY_SPEED),
    *(MEDIA_CACHE_BYTES, KV_HOST_BYTES),
)
GPU_GAUGES: Final = (GPU_MEMORY_USED, GPU_MEMORY_TOTAL, GPU_UTILISATION)
COUNTERS: Final = (
    *(PROMPT_TOKENS, PROMPT_TOKENS_CACHED, GENERATION_TOKENS, PREFIX_QUERIES, PREFIX_HITS),
    *(PREEMPTIONS, REQUEST_SUCCESS, CORRUPTED, REJECTIONS, DRAFT_TOKENS, ACCEPTED_TOKENS, STEPS),
    *(JOBS_CLAIMED, JOBS_PROCESSED, JOBS_HANDED_OVER, JOBS_TAKEN_OVER, JOBS_SLICED),
    *(RESUMED_TOKENS, RECOMPUTED_TOKENS, FENCED_WRITES, ENGINE_RESTARTS),
    *(OBJECTS, OBJECT_BYTES, MEDIA_DECODED, AUDIO_TIME, DECODE_TIME_OF_MEDIA),
    *(MEDIA_QUERIES, MEDIA_HITS, TOWER_RUNS, TOWER_TIME),
    *(KV_STORED, KV_RESTORED, KV_HOST_EVICTED, KV_NOT_STORED),
)
HISTOGRAMS: Final = (
    *(TTFT, INTER_TOKEN, PER_OUTPUT_TOKEN, E2E, QUEUE_TIME, PREFILL_TIME, DECODE_TIME),
    *(INFERENCE_TIME, REQUEST_PROMPT, REQUEST_GENERATION, PARAMS_MAX_TOKENS, PARAMS_N),
    *(STEP_TOKENS, STEP_TIME, OCCUPANCY, QUEUE_WAIT, CHECKPOINT_LAG),
)
#: Without `model_name`, which every series of a worker has.
WORKER_SERIES: Final = (*GAUGES, *GPU_GAUGES, GPU_XID_ERRORS, *COUNTERS, *HISTOGRAMS)
