"""The port that a server holds and its front ends share."""

from __future__ import annotations

import socket

import pytest

from tercet.server.ports import BindError, address, hold_port

NOBODY = "no.such.host.invalid"


def listen(port: int, *, share: bool, host: str = "127.0.0.1") -> socket.socket:
    """As gRPC does."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def test_it_is_shared_with_who_asks_and_nobody_else():
    with hold_port("127.0.0.1", 0) as port:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
        with pytest.raises(OSError, match="in use"):
            listen(port, share=False)
        with listen(port, share=True) as first, listen(port, share=True) as second:
            clients = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(4)]
            for listener in (first, second):
                listener.setblocking(False)
            for client in clients:
                client.close()
    with hold_port("127.0.0.1", port) as again:
        assert again == port


def test_a_second_server_is_refused_even_before_anybody_listens():
    with (
        hold_port("127.0.0.1", 0) as port,
        pytest.raises(BindError, match=rf"port: can't listen on 127\.0\.0\.1:{port}: Address already in use"),
        hold_port("127.0.0.1", port),
    ):
        pass
    with hold_port("127.0.0.1", port), pytest.raises(BindError), hold_port("127.0.0.1", port):
        pass


def test_connections_of_an_earlier_server_are_no_hindrance():
    with hold_port("127.0.0.1", 0) as port, listen(port, share=True) as listener:
        client = socket.create_connection(("127.0.0.1", port), 5)
        served, _ = listener.accept()
        served.close()  # first: it is the server's end that lingers
        assert client.recv(1) == b""
        client.close()
    with hold_port("127.0.0.1", port) as again, listen(port, share=True):
        assert again == port


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::"])  # noqa: S104
def test_every_address_of_a_name_is_held(host: str):
    named = {str(found[4][0]) for found in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    every = named if host == "localhost" else {"127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])}
    with hold_port(host, 0) as port:
        for taken in every:
            with pytest.raises(OSError, match="in use"):
                listen(port, share=False, host=taken)


def test_a_name_that_is_none():
    with pytest.raises(BindError, match=r"^port: can't listen on no\.such\.host\.invalid:1: \w"), hold_port(NOBODY, 1):
        pass


def test_addresses_as_people_write_them():
    assert (address("::1", 5), address("localhost", 5)) == ("[::1]:5", "localhost:5")
