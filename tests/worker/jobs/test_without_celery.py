"""The life of a job knows nothing of Celery: a task reaches it as a `TaskHandle`."""

from __future__ import annotations

import subprocess
import sys


def test_the_runtime_imports_neither_celery_nor_torch() -> None:
    script = (
        "import sys, batchmill.worker.jobs.runtime; "
        "print(sorted({'celery', 'kombu', 'billiard', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
