"""Structures that would end or stop the worker that compiles them."""

from __future__ import annotations

import json
from functools import partial

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill

QUEUE = keys.queue_name("demo", "normal")
#: Fills the stack of the process that compiles it; 25 KB.
RULES = "\n".join(
    ["start: a0", *(f'a{i}: a{i + 1} a{i + 1} | "x"' for i in range(1000)), 'a1000: "y"']
)


def test_a_structure_bomb_ends_only_its_own_job(mill: Mill) -> None:
    worker = mill.start_worker()
    good = mill.submit("a good job", max_tokens=1000)
    mill.wait_for(lambda: mill.store.read_tokens(good), "the first tokens")
    document = {"prompt": "x", "max_tokens": 5, "structured_outputs": {"grammar": RULES}}

    mill.store.client.lpush(keys.INBOX, json.dumps({"id": "bomb", **document}))
    mill.wait_for(partial(mill.store.dead_letter, "bomb"), "the dead letter")
    mill.celery.send_task("batchmill.generate", kwargs={"job": document}, queue=QUEUE, task_id="t")
    mill.wait_for(lambda: '"task_id": "t"' in worker.log, "the refusal of the task")

    letter = mill.store.dead_letter("bomb")
    assert letter is not None
    assert letter.reason.startswith("structure_too_complex: ")
    (record,) = mill.wait_ended(good)
    assert (record.state, record.attempts) == (JobState.COMPLETED, 1)
    assert worker.process.poll() is None
