"""Workers are killed and jobs retried: the sums of tokens are those of the results."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta

from batchmill.producer import Client
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.protocol.used_tokens import Amounts
from batchmill.producer.store.usage_sums import grouped, usage_sums

from ..conftest import Mill, stored_result

#: Slow enough that a worker dies in the middle of its jobs.
SLOW = {"step_time_s": 0.01, "num_cached_tokens": 2}
TENANTS = ("acme", "other")


def sums_of_tenants(mill: Mill) -> dict[str, Amounts]:
    """Return the sums of this test, which may run over midnight."""
    today = datetime.now(UTC).date()
    found = mill.store.read(usage_sums(today - timedelta(days=1), today + timedelta(days=1)))
    return {each.tenant or "": each.amounts for each in grouped(found, ["tenant"])}


def test_the_sums_are_those_of_the_results_after_kill_9_and_retries(mill: Mill) -> None:
    worker = mill.start_worker(stub=SLOW, max_num_seqs=8)
    prompts = [f"{'long ' * (number % 5)}prompt {number}" for number in range(24)]
    prompts[2] += " <<think=5>>"
    prompts[3] += " <<oom@20x1>>"  # tried again by itself
    prompts[5] += " <<error@30>>"  # fails
    job_ids = [
        mill.submit(
            prompt, max_tokens=40 + 5 * number, n=1 + (number == 7), tenant=TENANTS[number % 2]
        )
        for number, prompt in enumerate(prompts)
    ]
    mill.wait_tokens(job_ids[0], 20)
    worker.end(signal.SIGKILL)
    mill.start_worker("w2", stub=SLOW, max_num_seqs=8)
    records = mill.wait_ended(*job_ids, timeout_s=60)
    assert {record.state for record in records} == {JobState.COMPLETED, JobState.FAILED}
    assert max(record.attempts for record in records) > 1
    with Client(mill.url) as client:
        client.retry(job_ids[5])  # fails again, with the tokens that it had
    mill.wait_for(
        lambda: mill.record(job_ids[5]).run == 2 and mill.state(job_ids[5]).is_terminal, "the retry"
    )

    expected = dict.fromkeys(TENANTS, Amounts())
    for record in map(mill.record, job_ids):
        usage = stored_result(record)["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        thoughts = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        used = Amounts(1, usage["prompt_tokens"], usage["completion_tokens"], cached, thoughts)
        expected[record.tenant] = expected[record.tenant].plus(used)
    assert expected["acme"].cached_tokens > 0
    assert expected["acme"].reasoning_tokens == 5
    assert sums_of_tenants(mill) == expected
    assert json.loads(mill.record(job_ids[7]).document)["n"] == 2
