"""Large payloads by reference: content over a threshold lies in the operator's object store.

Read `object_store.py` first; `ciphers.py` puts content there and takes it back, beside sealing. The
form of a reference is in `protocol/payloads.py`.
"""
