"""Health of the services of this machine: each writes a small file, and a probe reads it.

Read `report.py` first. Nothing here talks to Redis: a probe must tell a broken process from a
broken broker, and must not wait for either.
"""
