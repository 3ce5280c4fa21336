"""Where ranks find each other: a store of rank 0, on a port of the loopback interface."""

from __future__ import annotations

import socket

from torch._C._distributed_c10d import Store, TCPStore

from .collectives import LOOPBACK, TIMEOUT


def open_store(num_ranks: int) -> tuple[Store, int]:
    """Open rank 0's store on a free port that the system chooses; return it and its port.

    The socket is opened here because the store's own would listen on all interfaces.
    """
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen()
    port: int = listener.getsockname()[1]
    store = TCPStore(
        LOOPBACK,
        port,
        num_ranks,
        True,
        TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),  # the store closes it
    )
    return store, port


def join_store(port: int, num_ranks: int) -> Store:
    """Connect another rank to rank 0's store."""
    return TCPStore(LOOPBACK, port, num_ranks, False, TIMEOUT)
