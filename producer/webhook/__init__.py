"""The security-relevant part of webhooks: signatures, allowed targets and deduplication.

Read `signature.py` first, then `target.py`. This package sends nothing; the deliverer in
`worker/webhooks` does.
"""
