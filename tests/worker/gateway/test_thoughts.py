"""Thoughts reach the stock clients apart from the text, whole and in pieces."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic
from openai import OpenAI

from .conftest import DEADLINE_S, Site

#: The stub's tokens are words; the first five are thoughts.
ASKED = "<<think=5>>hello"
MESSAGES: Any = [{"role": "user", "content": ASKED}]


def words(text: str) -> int:
    return len(text.split())


def test_a_streamed_chat_has_thoughts_in_deltas_of_their_own(openai: OpenAI) -> None:
    given: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 300, "seed": 7}
    whole = openai.chat.completions.create(**given, reasoning_effort="low")
    message = whole.choices[0].message
    thoughts = message.model_extra["reasoning_content"]
    assert words(thoughts) == 5
    assert whole.usage.completion_tokens_details.reasoning_tokens == 5

    chunks = list(openai.chat.completions.create(**given, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    streamed = [each.model_extra.get("reasoning_content") or "" for each in deltas]
    assert "".join(streamed) == thoughts
    assert "".join(each.content or "" for each in deltas) == message.content
    last_thought = max(place for place, text in enumerate(streamed) if text)
    assert not any(each.content for each in deltas[: last_thought + 1])


def test_a_response_has_a_reasoning_item_and_its_events(openai: OpenAI) -> None:
    given: Any = {"model": "demo", "input": ASKED, "max_output_tokens": 40}
    given |= {"extra_body": {"seed": 7}, "reasoning": {"effort": "low", "summary": "auto"}}
    whole = openai.responses.create(**given)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    thoughts = whole.output[0].content[0].text
    assert (words(thoughts), words(whole.output_text)) == (5, 35)
    assert whole.usage.output_tokens_details.reasoning_tokens == 5

    events = list(openai.responses.create(**given, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[2:5] == [
        *("response.output_item.added", "response.content_part.added"),
        "response.reasoning_text.delta",
    ]
    deltas = [each.delta for each in events if each.type == "response.reasoning_text.delta"]
    assert ("".join(deltas), len(deltas)) == (thoughts, 5)
    done = kinds.index("response.reasoning_text.done")
    assert kinds[done : done + 3] == [
        *("response.reasoning_text.done", "response.content_part.done"),
        "response.output_item.done",
    ]
    assert events[done].text == thoughts
    texts = [each for each in events if each.type == "response.output_text.delta"]
    assert {each.output_index for each in texts} == {1}
    assert "".join(each.delta for each in texts) == whole.output_text

    # Later readings number the events alike, and a later turn may show the thoughts again.
    again = openai.responses.retrieve(events[0].response.id, stream=True, starting_after=4)
    assert [each.to_dict() for each in again] == [each.to_dict() for each in events[5:]]
    shown = [item.to_dict() for item in whole.output]
    following = [{"role": "user", "content": "a"}, *shown, {"role": "user", "content": "b"}]
    assert openai.responses.create(**{**given, "input": following}).status == "incomplete"


def test_a_message_has_a_thinking_block_and_its_deltas(site: Site) -> None:
    root = site.url.removesuffix("/v1")
    client = Anthropic(base_url=root, api_key=site.secret, max_retries=0, timeout=DEADLINE_S)
    given: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 40}
    given |= {"extra_body": {"seed": 7}, "thinking": {"type": "enabled", "budget_tokens": 20}}
    whole = client.messages.create(**given)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert words(whole.content[0].thinking) == 5

    with client.messages.stream(**given) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict() for block in whole.content
    ]
    kinds = [event.type for event in events]
    assert kinds.index("thinking") < kinds.index("text")
    # A later turn may show the block again; the job has it no more.
    following = [
        *MESSAGES,
        {"role": "assistant", "content": [block.to_dict() for block in whole.content]},
        {"role": "user", "content": "more"},
    ]
    again = client.messages.create(
        **{**given, "messages": following, "thinking": {"type": "disabled"}}
    )
    job_id = again.id.replace("msg_", "gen_")
    document = site.mill.record(job_id)
    assert whole.content[0].thinking not in str(document)
