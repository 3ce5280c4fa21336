"""`python -m batchmill.worker.cli`."""

from .start import main

main()
