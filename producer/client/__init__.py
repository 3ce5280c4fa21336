"""The clients that users import: submitting, waiting, listing, cancelling and batches.

Read `client.py` first. Import the names from `batchmill.producer`, not from here.
"""
