"""Every script call as a value: the arguments of the script, and how its reply is parsed.

Read `call.py` first, then `jobs.py`. Pure functions without input or output, shared by the
synchronous store, the asyncio store and pipelines. Nothing else builds a `Call`.
"""
