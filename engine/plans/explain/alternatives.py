"""What the runner-up token at the least certain places would have led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from batchmill.engine.plans.plan import PlannedRequest
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.tokenizer import Tokenizer

#: Places at which another way is followed, and tokens that each of these ways goes on for.
NUM_PLACES: Final = 3
NUM_TOKENS: Final = 32


def least_certain(facts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the places of the tokens with the smallest margins, in order of the output."""
    with_other = [place for place, each in enumerate(facts) if each["runner_up"] is not None]
    return sorted(sorted(with_other, key=lambda place: facts[place]["margin"])[:NUM_PLACES])


def fork_request(
    output: RequestOutput, place: int, token_id: int, max_model_len: int
) -> PlannedRequest | None:
    """Return a request that goes on greedily after another token; None if there is no room.

    It shares the blocks of the prompt and of the output up to the place.
    """
    prompt = [*output.prompt_token_ids, *output.token_ids[:place], token_id]
    room = max_model_len - len(prompt)
    if room < 1:
        return None
    params = SamplingParams(temperature=0, max_tokens=min(NUM_TOKENS, room))
    return PlannedRequest(prompt, params, priority_below=1)


def alternative(
    tokenizer: Tokenizer, facts: Sequence[Mapping[str, Any]], place: int, token_ids: Sequence[int]
) -> dict[str, Any]:
    """Return the other way at a place, from the tokens that follow the runner-up."""
    here = facts[place]
    return {
        "position": place,
        "token": tokenizer.decode([here["token_id"]], skip_special_tokens=False),
        "probability": here["probability"],
        "other_token": tokenizer.decode([here["runner_up"]], skip_special_tokens=False),
        "other_probability": here["runner_up_probability"],
        "text": tokenizer.decode([here["runner_up"], *token_ids]),
    }
