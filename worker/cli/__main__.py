"""`python -m batchmill.worker.cli`."""

from .main import main

main()
