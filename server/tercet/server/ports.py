"""A port for several processes that nobody else can have."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  each means both to gRPC


class BindError(OSError):
    """An address that can't be listened on; one line."""


def address(host: str, port: int) -> str:
    """Host and port as one."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_of(address: str) -> int:
    """The port of an address."""
    return int(address.rpartition(":")[2])


@contextmanager
def hold_port(host: str, port: int) -> Generator[list[str]]:
    """Takes a port alone, so that one in use is an error, then lets this user's processes share it by SO_REUSEPORT.

    Gives the addresses of `host` with the port, a free one for 0, and holds them without ever listening: connections go
    to those who share them. Raises BindError.
    """
    bound = "::" if host in _WILDCARDS and socket.has_dualstack_ipv6() else host
    addresses: list[str] = []
    problem: str | None = None
    with ExitStack() as held:
        try:
            found = socket.getaddrinfo(bound, port, type=socket.SOCK_STREAM)
        except OSError as error:
            found, problem = [], error.strerror
        for family, kind, protocol, _, (name, *_) in found:
            try:
                port = _hold(held.enter_context(socket.socket(family, kind, protocol)), str(name), port)
            except OSError as error:
                problem = error.strerror
                if error.errno == errno.EADDRINUSE:
                    addresses.clear()
                    break
            else:
                addresses.append(address(str(name), port))
        if not addresses:  # names may have some of a family that the machine does not speak, but not those alone
            raise BindError(f"port: can't listen on {address(host, port)}: {problem}")
        yield addresses


def _hold(held: socket.socket, name: str, port: int) -> int:
    """Binds an address, alone; gives the port."""
    if held.family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, name != "::")
    # Connections of an earlier server may linger on a port that is asked for. That nobody else has it, or takes it as
    # freely at the same time, is then known only by listening, for a moment.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, port != 0)
    held.bind((name, port))
    if port:
        held.listen()
        held.shutdown(socket.SHUT_RDWR)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return int(held.getsockname()[1])
