"""The files of tests that take longest: they start first, so that none of them ends alone."""

from __future__ import annotations

import pytest

#: Paths below tests/, slowest first. A file that is not here starts after them.
SLOW_FILES = (
    "end_to_end/test_parallel_jobs.py",
    "engine/parallel/test_rank_processes.py",
    "worker/jobs/test_worker_faults.py",
    "end_to_end/test_real_generation.py",
    "engine/models/test_decoder_triton.py",
    "producer/protocol/test_protocol_machine.py",
    "worker/gateway/test_openapi.py",
    "engine/models/test_model_families.py",
    "examples/test_readme.py",
    "worker/test_tls.py",
    "kernels/cpu/test_build.py",
    "bench/test_gpu_run.py",
    "engine/test_greedy_equals_transformers.py",
    "engine/media/test_equal_transformers.py",
    "engine/loading/test_demo_model.py",
    "worker/cli/test_bulk_faults.py",
    "worker/consumer/test_canvas.py",
    "worker/consumer/test_async_result.py",
    "engine/execution/test_overlap.py",
    "engine/scheduling/test_speculation.py",
    "engine/models/test_int8_models.py",
    "bench/test_step_profile.py",
    "worker/local/test_up.py",
    "worker/demo/test_demo.py",
    "end_to_end/test_chaos.py",
    "worker/cli/test_bulk_full_disk.py",
    "engine/text/test_structured_output.py",
    "worker/consumer/test_accepted_tasks.py",
    "worker/consumer/test_refusing_redis.py",
    "worker/jobs/test_unsaved_tokens.py",
    "worker/jobs/test_lost_workers.py",
    "worker/jobs/test_streaming_faults.py",
    "worker/jobs/test_worker_intake.py",
    "worker/jobs/test_inbox_faults.py",
    "worker/cli/test_healthcheck.py",
    "producer/protocol/test_usage_recount.py",
    "engine/loading/test_gguf_conversion.py",
    "engine/loading/test_loading_memory.py",
    "engine/execution/test_warm_up.py",
    "producer/client/test_job_fields.py",
    "kernels/gpu/test_compiled.py",
    "examples/test_framework_examples.py",
    "worker/jobs/test_engine_breaker.py",
    "worker/consumer/test_lossy_failover.py",
    "worker/webhooks/test_webhook_choices.py",
    "worker/webhooks/test_deliverer.py",
    "worker/webhooks/test_deliverer_faults.py",
    "worker/cli/test_bulk_models.py",
    "worker/cli/test_status_watch.py",
    "worker/gateway/test_several_brokers.py",
    "worker/test_shard_commands.py",
    "worker/jobs/test_batches.py",
    "worker/jobs/test_disturbed_redis.py",
    "worker/jobs/test_two_workers.py",
    "end_to_end/test_chat_jobs.py",
    "examples/test_receivers.py",
    "worker/test_canary.py",
)


def sort_slow_first(items: list[pytest.Item]) -> None:
    """Move the tests of slow files to the front; the order is otherwise as it was."""
    places = {path: place for place, path in enumerate(SLOW_FILES)}

    def place_of(item: pytest.Item) -> int:
        path = item.nodeid.partition("::")[0].removeprefix("tests/")
        return places.get(path, len(places))

    items.sort(key=place_of)
