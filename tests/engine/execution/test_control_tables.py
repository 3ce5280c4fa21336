"""The tables of controls on the device: what they count, and when they are loaded again."""

from __future__ import annotations

import torch

from batchmill.engine.execution.control_tables import ControlTables
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.token_controls import RequestControls

VOCAB_SIZE = 16


def request(output: list[int]) -> Request:
    params = SamplingParams(presence_penalty=1.0, max_tokens=8)
    controls = RequestControls(params, [1])
    return Request(
        "a", [1], params, seed=0, max_num_tokens=9, resumed_token_ids=output, controls=controls
    )


def penalised(tables: ControlTables, last_token: int) -> list[int]:
    """Return the tokens whose logits a step's penalties lower."""
    tables.advance()
    (row,) = tables.apply(torch.zeros(1, VOCAB_SIZE), torch.tensor([last_token]))
    return [token_id for token_id, value in enumerate(row.tolist()) if value < 0]


def test_a_row_counts_the_tokens_of_its_steps_without_an_upload() -> None:
    tables, decoded = ControlTables(VOCAB_SIZE, torch.device("cpu")), request([3])
    tables.load([(decoded, 1)])
    assert penalised(tables, 3) == [3]
    assert penalised(tables, 5) == [3, 5]


def test_a_released_request_may_have_other_tokens_than_its_row_has_counted() -> None:
    tables, released = ControlTables(VOCAB_SIZE, torch.device("cpu")), request([3])
    tables.load([(released, 1)])
    penalised(tables, 3)
    # Its tokens are discarded, because a token failed in whose step its first blocks were computed.
    # It is computed again, and decodes once in a step that is not recorded.
    released.num_releases += 1
    released.output_token_ids = [7, 9]
    tables.load([(released, 2)])
    assert penalised(tables, 9) == [7, 9]
