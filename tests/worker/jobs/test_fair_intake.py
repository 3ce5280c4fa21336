"""The order of jobs in the engine: classes in order, fair shares for the tenants of a class."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys

from ..conftest import Mill, stored_result

ONE_AT_A_TIME: dict[str, Any] = {"max_num_seqs": 1, "stub": {"step_time_s": 0.001}}
WINDOW = keys.DEFAULT_WINDOW_JOBS


def admission_order(mill: Mill, names: dict[str, str]) -> list[str]:
    """Return the jobs' names in the order in which the engine computed their first tokens."""
    mill.wait_ended(*names)
    lines = mill.trace_path.read_text().splitlines()
    return [names[line.partition(".")[0]] for line in lines if line.endswith(" 0")]


def test_the_engine_gets_classes_in_order_and_tenants_by_fair_share(mill: Mill) -> None:
    names: dict[str, str] = {}
    for tenant, priority, number in (
        *(("a", "normal", 30), ("b", "normal", 8)),
        *(("a", "high", 20), ("b", "high", 3)),
    ):
        for index in range(number):
            job_id = mill.submit(f"{index}", tenant=tenant, priority=priority, max_tokens=2)
            names[job_id] = f"{priority} {tenant}"
    mill.start_worker(**ONE_AT_A_TIME)
    order = admission_order(mill, names)
    # The worker asks for one job more than it runs, so one job of a class may come early.
    high = [index for index, name in enumerate(order) if name.startswith("high")]
    assert high[-1] <= len(high)
    for priority, mine, others in (("high", 3, 20), ("normal", 8, 30)):
        in_class = [name for name in order if name.startswith(priority)]
        last = len(in_class) - 1 - in_class[::-1].index(f"{priority} b")
        assert last <= WINDOW + 2 * mine + 1 < mine + others


def test_a_delayed_job_starts_within_about_a_second_of_its_time(mill: Mill) -> None:
    mill.start_worker(sweep_interval_s=120)
    job_id = mill.submit("later", delay_s=1.0, max_tokens=1)
    [record] = mill.wait_ended(job_id)
    assert record.not_before_ms is not None
    assert record.started_at_ms is not None
    assert record.enqueued_at_ms is not None
    lateness_ms = record.started_at_ms - record.not_before_ms
    # 0.65 s and a claim on an idle machine; by a sweep it would be two minutes.
    assert 0 <= lateness_ms < 60_000
    assert record.started_at_ms - record.enqueued_at_ms >= 1000


def test_results_name_their_tenant_and_no_charge_is_left_when_all_have_ended(mill: Mill) -> None:
    mill.start_worker(max_num_seqs=1)
    ids = [mill.submit("x" * 40, tenant="acme", tags=["a", "b"], max_tokens=3) for _ in range(10)]
    records = mill.wait_ended(*ids)
    assert not mill.store.client.exists(keys.USAGE)
    result = stored_result(records[0])
    assert (result["tenant"], result["tags"]) == ("acme", ["a", "b"])
