"""The light side of batchmill: the wire contract and the clients. Never imports torch."""
