"""How many jobs a worker takes: only what its engine can run soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill

SLOW = {"step_time_s": 0.01}


def num_in_progress(mill: Mill) -> int:
    return int(mill.store.counts().in_progress)


def most_in_progress_until(mill: Mill, job_ids: list[str]) -> int:
    """Wait until all jobs have ended, and return the maximum number of leased jobs."""
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, num_in_progress(mill))
        return all(mill.state(job_id).is_terminal for job_id in job_ids)

    mill.wait_for(ended, "all jobs to end")
    return most


def test_a_worker_claims_no_more_jobs_than_it_has_slots(mill: Mill) -> None:
    mill.start_worker(max_num_seqs=4, stub=SLOW)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=20) for number in range(24)]

    # Besides the slots: the reply to the request made when the last slot was free, and the jobs
    # that have left their slots while their ends are being written.
    assert 4 <= most_in_progress_until(mill, job_ids) <= 9


def test_a_worker_claims_no_more_jobs_than_its_blocks_hold(mill: Mill) -> None:
    # A prompt of 40 tokens and its output of 20 need four blocks of 16.
    mill.start_worker(stub={**SLOW, "num_blocks": 24})
    job_ids = [mill.submit("x" * 160, max_tokens=20) for _ in range(40)]

    assert most_in_progress_until(mill, job_ids) <= 10


def test_two_workers_share_the_waiting_jobs(mill: Mill) -> None:
    mill.start_worker("w1", max_num_seqs=4, stub=SLOW)
    mill.start_worker("w2", max_num_seqs=4, stub=SLOW)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=40) for number in range(32)]

    owners = [record.owner for record in mill.wait_ended(*job_ids)]

    assert min(owners.count("w1@test"), owners.count("w2@test")) >= 8


def test_jobs_wait_until_the_model_is_loaded(mill: Mill) -> None:
    worker = mill.launch(stub={"load_time_s": 1.5})
    job_id = mill.submit()
    mill.wait_for(mill.store.list_workers, "its first heartbeat")

    (beat,) = mill.store.list_workers()
    assert beat.state == "starting"
    assert mill.state(job_id) is JobState.QUEUED

    mill.wait_ended(job_id)
    assert mill.heartbeat(worker) is not None


def test_the_celery_command_runs_a_worker(mill: Mill) -> None:
    environment = {
        **os.environ,
        "BATCHMILL_BROKER_URL": mill.url,
        "BATCHMILL_ENGINE": "stub",
    }
    command = [sys.executable, "-m", "celery", "-A", "batchmill.worker.app", "worker", "-n", "c@x"]
    job_id = mill.submit()
    log_path = mill.folder / "celery.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        (record,) = mill.wait_ended(job_id)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log_path.read_text()
    finally:
        process.kill()
        process.wait()
    assert (record.state, record.owner) == (JobState.COMPLETED, "c@x")


def test_importing_the_app_does_not_import_torch(mill: Mill) -> None:
    script = (
        "import sys, batchmill.worker.app as a; heavy = {'torch', 'transformers', 'numpy'}; "
        "print(sorted(heavy & set(sys.modules)), list(a.app.tasks)[-1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BATCHMILL_BROKER_URL": mill.url},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("[] ")
