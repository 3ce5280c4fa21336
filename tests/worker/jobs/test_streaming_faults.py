"""Streams of checkpointed output across the death and the replacement of workers."""

from __future__ import annotations

import signal

import pytest

from batchmill.producer import Client, OutputRestarted
from batchmill.worker.engine_host.stub_output import stub_text

from ..conftest import Mill, expected_tokens

_SLOW = {"step_time_s": 0.01}


def test_a_dead_worker_leaves_no_gap_and_no_repetition(mill: Mill) -> None:
    worker = mill.start_worker(stub=_SLOW)
    job_id = mill.submit("survivor", max_tokens=250)
    texts, tokens = [], []
    with Client(mill.url) as client:
        for number, piece in enumerate(client.stream(job_id, timeout_s=60)):
            texts.append(piece.text)
            tokens += piece.token_ids
            if number == 1:
                worker.end(signal.SIGKILL)
                mill.launch("w2", stub=_SLOW)
    assert tokens == expected_tokens("survivor", 250)
    assert "".join(texts) == stub_text(tokens)
    assert mill.record(job_id).attempts == 2


def test_another_model_ends_the_stream_instead_of_retracting_text(mill: Mill) -> None:
    worker = mill.start_worker(stub=_SLOW)
    job_id = mill.submit("changed", max_tokens=250)
    with Client(mill.url) as client:
        stream = client.stream(job_id, timeout_s=60)
        next(stream)
        worker.end()
        mill.launch("w2", stub={**_SLOW, "identity": "another"})
        with pytest.raises(OutputRestarted):
            list(stream)
        again = "".join(piece.text for piece in client.stream(job_id, timeout_s=60))
    assert again == stub_text(expected_tokens("changed", 250))
