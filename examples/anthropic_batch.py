"""A batch of messages by Anthropic's asyncio client.

    ANTHROPIC_BASE_URL=http://127.0.0.1:8000 ANTHROPIC_API_KEY=… python examples/anthropic_batch.py

Nothing here knows of batchmill: the same program runs against Anthropic.
"""

from __future__ import annotations

import asyncio
import json
import os

from anthropic import AsyncAnthropic

MODEL = os.environ.get("MODEL", "demo")
QUESTIONS = ("What is a queue?", "What is a batch?", "What is a webhook?")


async def main() -> None:
    async with AsyncAnthropic() as client:
        batch = await client.messages.batches.create(
            requests=[
                {
                    "custom_id": f"question-{number}",
                    "params": {
                        "model": MODEL,
                        "max_tokens": 32,
                        "messages": [{"role": "user", "content": question}],
                    },
                }
                for number, question in enumerate(QUESTIONS, start=1)
            ]
        )
        while batch.processing_status != "ended":
            await asyncio.sleep(0.5)
            batch = await client.messages.batches.retrieve(batch.id)
        async for entry in await client.messages.batches.results(batch.id):
            assert entry.result.type == "succeeded"
            text = "".join(
                each.text for each in entry.result.message.content if each.type == "text"
            )
            print(entry.custom_id, json.dumps(text))


if __name__ == "__main__":
    asyncio.run(main())
