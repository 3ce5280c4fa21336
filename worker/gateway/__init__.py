"""The HTTP APIs of OpenAI and Anthropic before the queue.

Read `app.py` first, then `chat.py`. Nothing here is kept in a process: any gateway may die at any
moment, and any other one goes on from the records in Redis.
"""
