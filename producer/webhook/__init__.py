"""The security-relevant side of webhooks: signatures, allowed targets, and dropping repeats.

Read `signature.py` first, then `target.py`. This package never sends anything; the deliverer in
`worker/webhooks` does.
"""
