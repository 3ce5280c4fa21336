"""The contract of a request: names, limits, grammars and refusals, for engine and producers.

Read `limits.py` first. This package imports nothing else of batchmill, and its only input and
output is that of the processes that check structures; it is the only part of the engine that
`batchmill.producer` imports. Both sides read the same tables, so a producer refuses at submit what
the engine would refuse later.
"""
