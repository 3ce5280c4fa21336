"""A background response by OpenAI's asyncio client, whose stream is cut and resumed.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=… python examples/openai_background.py

It goes on while no client is connected, and after the death of gateways and workers.
"""

from __future__ import annotations

import asyncio
import os

from openai import AsyncOpenAI

MODEL = os.environ.get("MODEL", "demo")


async def main() -> None:
    async with AsyncOpenAI() as client:
        stream = await client.responses.create(
            model=MODEL,
            input="Tell me about queues.",
            max_output_tokens=48,
            background=True,
            stream=True,
        )
        name, last = "", -1
        async for event in stream:
            last = event.sequence_number
            if event.type == "response.created":
                name = event.response.id
            if event.type == "response.output_text.delta":
                break  # as if the connection was lost
        await stream.close()
        rest = await client.responses.retrieve(name, stream=True, starting_after=last)
        numbers = [event.sequence_number async for event in rest]
        assert numbers == list(range(last + 1, last + 1 + len(numbers)))
        response = await client.responses.retrieve(name)
        print(response.status, response.output_text)


if __name__ == "__main__":
    asyncio.run(main())
