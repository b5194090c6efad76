"""A network of the test's own: HAProxy and Ray bind ports on all interfaces, which no test may open on this machine."""

import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


@pytest.fixture(scope="session")
def isolated() -> Callable[[Callable[[], T]], T]:
    """Runs a function in a thread that has a network namespace of its own; what it starts shares it."""

    def run(function: Callable[[], T]) -> T:
        found: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                _enter()
                found.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return found[0]

    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    try:
        run(lambda: None)
    except OSError as error:
        pytest.skip(f"no right to make a network namespace ({error}); run as root to have this test")
    return run


def _enter() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
