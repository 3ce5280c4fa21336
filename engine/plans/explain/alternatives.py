"""What the runner-up token at the least certain places would have led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from batchmill.engine.plans.plan import PlannedJob, PlannedRequest
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.tokenizer import Tokenizer

#: Places at which another way is followed, and tokens that each of these ways goes on for.
NUM_PLACES: Final = 3
NUM_TOKENS: Final = 32


def least_certain(facts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the places of the tokens with the smallest margins, in order of the output."""
    with_other = [place for place, each in enumerate(facts) if each["runner_up"] is not None]
    return sorted(sorted(with_other, key=lambda place: facts[place]["margin"])[:NUM_PLACES])


def fork_request(
    job: PlannedJob, output: RequestOutput, place: int, token_id: int
) -> PlannedRequest | None:
    """Return a request that goes on greedily after another token; None if there is no room.

    It shares the blocks of the prompt and of the output up to the place.
    """
    known = [*output.token_ids[:place], token_id]
    room = job.engine.config.max_model_len - len(output.prompt_token_ids) - len(known)
    if room < 1:
        return None
    num_tokens = min(NUM_TOKENS, room)
    if not job.media:
        prompt = [*output.prompt_token_ids, *known]
        params = SamplingParams(temperature=0, max_tokens=num_tokens)
        return PlannedRequest(prompt, params, priority_below=1)
    # Only a chat has places for media, so what is known stands in the output.
    assert isinstance(job.prompt, Chat)
    chat = job.prompt
    if chat.must_call or chat.is_single_call:  # neither holds for another way
        chat = replace(chat, tool_choice=None, parallel_tool_calls=None)
    params = SamplingParams(temperature=0, max_tokens=len(known) + num_tokens)
    return PlannedRequest(chat, params, resumed_token_ids=known, priority_below=1, media=job.media)


def following(request: PlannedRequest, output: RequestOutput) -> Sequence[int]:
    """Return the tokens that a fork found after the other token."""
    return output.token_ids[len(request.resumed_token_ids) :]


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
