"""Metrics of all services, in Prometheus' format, and the HTTP server for them and for probes.

Read `series.py` first, then `catalogue.py`, which lists every series. Counting needs no library:
prometheus_client is imported only where metrics are served.
"""
