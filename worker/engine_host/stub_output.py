"""What the stub engine adds to the end of a request that asked for more than text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from .messages import FinishedCall, FinishedSample, LogprobDetails

_VOCAB_SIZE = 50_000
_THINK = re.compile(r"<<think=(\d{1,4})>>")


def stub_token(prompt: str, seed: int, position: int) -> int:
    """Return the token id that the stub generates at an output position."""
    return zlib.crc32(f"{seed}:{position}:{prompt}".encode()) % _VOCAB_SIZE


def stub_text(token_ids: Sequence[int]) -> str:
    """Return the text of output tokens: one word per token."""
    return "".join(f" w{token_id}" for token_id in token_ids)


def split_thoughts(prompt: str, token_ids: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return the tokens of the thoughts, and those after them.

    A prompt with `<<think=N>>` lets the first N tokens be thoughts; others have none.
    """
    found = _THINK.search(prompt)
    num_tokens = 0 if found is None else int(found[1])
    return token_ids[:num_tokens], token_ids[num_tokens:]


def stub_thoughts(token_ids: Sequence[int]) -> str:
    """Return the thoughts of their tokens, without blanks around them."""
    return stub_text(token_ids).strip()


def extra_output(
    prompt: str,
    chat: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    token_ids: Sequence[int],
    finish_reason: str,
) -> dict[str, Any]:
    """Return fields of `Finished`: its reason, samples, log probabilities and calls, as asked for.

    The sample of index i is that of the seed plus i. A chat with tools whose choice demands a call
    gets one call of each tool, without arguments.
    """
    num_top, n = params.get("logprobs"), int(params.get("n") or 1)
    seed = int(params.get("seed") or 0)
    others = [
        [stub_token(prompt, seed + index, position) for position in range(len(token_ids))]
        for index in range(1, n)
    ]
    outputs = [list(token_ids), *others]
    calls = _calls(chat)
    finish_reason = "tool_calls" if calls else finish_reason
    fields: dict[str, Any] = {"finish_reason": finish_reason, "tool_calls": calls}
    if num_top is not None:
        shown = {token + more for output in outputs for token in output for more in range(num_top)}
        shown.update(token for output in outputs for token in output)
        token_bytes = {token: stub_text([token]).encode() for token in shown}
        fields["logprobs"] = _logprobs(token_ids, num_top)
        fields["logprob_details"] = LogprobDetails(num_top, token_bytes, None)
    if n > 1:
        fields["samples"] = [
            FinishedSample(
                text=stub_text(output),
                token_ids=output,
                finish_reason=finish_reason,
                logprobs=None if num_top is None else _logprobs(output, num_top),
                tool_calls=calls,
            )
            for output in outputs
        ]
    return fields


def _logprobs(token_ids: Sequence[int], num_top: int) -> list[dict[int, float]]:
    """Return a token's log probability and those of its neighbours, ever less likely."""
    return [
        {token_id + place: -0.5 - place for place in range(max(1, num_top))}
        for token_id in token_ids
    ]


def _calls(chat: Mapping[str, Any] | None) -> list[FinishedCall]:
    if chat is None or not chat.get("tools"):
        return []
    choice = chat.get("tool_choice")
    if choice != "required" and not isinstance(choice, Mapping):
        return []
    names = [tool["function"]["name"] for tool in chat["tools"]]
    if isinstance(choice, Mapping):
        names = [choice["function"]["name"]]
    return [FinishedCall(f"call_{place}", name, "{}") for place, name in enumerate(names)]


def stub_decision(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of a decision, with probabilities that depend on state and option."""
    answers = {
        name: _answer(str(fields["state"]), name, question)
        for name, question in fields["questions"].items()
    }
    return {"answers": answers, "num_prompts": len(answers)}


def _answer(state: str, name: str, question: Mapping[str, Any]) -> dict[str, Any]:
    kind, criteria = question["type"], question.get("criteria") or ()
    options = ("yes", "no") if kind == "yes_no" else tuple(criteria)
    if kind == "score":
        options = tuple(map(str, range(len(criteria))))
    weights = [1 + stub_token(f"{state}:{name}:{option}", 0, 0) for option in options]
    probabilities = {o: each / sum(weights) for o, each in zip(options, weights, strict=True)}
    answer = max(probabilities, key=lambda option: probabilities[option])
    found: dict[str, Any] = {
        "type": kind,
        "answer": answer,
        "probabilities": probabilities,
        "confidence": probabilities[answer],
        "label_mass": 0.5,
        "argmax_is_label": True,
    }
    if kind == "score":
        found["score"] = sum(int(level) * each for level, each in probabilities.items())
    return found


def stub_explanation(parts: Sequence[str], prompt: str, token_ids: Sequence[int]) -> dict[str, Any]:
    """Return the parts of an explanation: half-sure tokens that rest on the whole prompt."""
    texts = [stub_text([token_id]) for token_id in token_ids]
    sure = {"probability": 0.5, "entropy": 1.0, "rank": 1, "margin": 0.25}
    output = "".join(texts)
    found: dict[str, Any] = {
        "confidence": [{"text": text, **sure} for text in texts],
        "alternatives": [
            {
                "position": 0,
                "token": text,
                "probability": 0.5,
                "other_token": " other",
                "other_probability": 0.25,
                "text": f" other{output}",
            }
            for text in texts[:1]
        ],
        "attribution": {
            "segments": [{"source": "prompt", "text": prompt, "leave_one_out": 1.0, "weight": 1.0}],
            "top_k_drop": {"1": 1.0},
            "lds": None,
        },
        "uncertainty": {
            "num_samples": 1,
            "groups": [{"text": output, "count": 1}],
            "entropy": 0.0,
            "agreement": 1.0,
        },
    }
    usage = {
        "num_requests": len(parts),
        "prompt_tokens": 4,
        "cached_tokens": 0,
        "completion_tokens": len(token_ids),
    }
    return {part: found[part] for part in parts} | {"usage": usage}
