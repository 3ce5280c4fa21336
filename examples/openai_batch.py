"""A batch of chats by OpenAI's own client: upload a file, wait, read the results.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=… python examples/openai_batch.py

Nothing here knows of batchmill: the same program runs against OpenAI.
"""

from __future__ import annotations

import io
import json
import os
import time

from openai import OpenAI

MODEL = os.environ.get("MODEL", "demo")
QUESTIONS = ("What is a queue?", "What is a batch?", "What is a webhook?")


def main() -> None:
    lines = [
        {
            "custom_id": f"question-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "max_tokens": 32,
                "messages": [{"role": "user", "content": question}],
            },
        }
        for number, question in enumerate(QUESTIONS, start=1)
    ]
    text = "\n".join(map(json.dumps, lines))
    with OpenAI() as client:
        file = client.files.create(
            file=("questions.jsonl", io.BytesIO(text.encode())), purpose="batch"
        )
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while batch.status in ("validating", "in_progress", "finalizing"):
            time.sleep(0.5)
            batch = client.batches.retrieve(batch.id)
        assert batch.output_file_id is not None, batch.errors
        for line in client.files.content(batch.output_file_id).text.splitlines():
            result = json.loads(line)
            message = result["response"]["body"]["choices"][0]["message"]
            print(result["custom_id"], json.dumps(message["content"]))


if __name__ == "__main__":
    main()
