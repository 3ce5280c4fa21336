"""`batchmill bench failover`: primaries that die under load, with real Sentinels, and an oracle.

Read `run.py` first. `watched.py` starts the servers; `oracle.py` says what may happen and what not.
"""
