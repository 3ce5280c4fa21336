"""Running everything on one machine: embedded broker, child processes, state folder, Flower.

Read `stack.py` first, then `supervisor.py`. This package knows nothing about jobs.
"""
