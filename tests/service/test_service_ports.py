"""The port that a server holds and its front ends share."""

from __future__ import annotations

import socket

import pytest

from tercet.server.ports import BindError, address, hold_port, port_of

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
    with hold_port("127.0.0.1", 0) as [held]:
        port = port_of(held)
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
        assert again == [held]


def test_a_second_server_is_refused_even_before_anybody_listens():
    with hold_port("127.0.0.1", 0) as [held]:
        port = port_of(held)
        with pytest.raises(BindError, match=f"port: can't listen on {held}: Address already in use"):
            hold_port("127.0.0.1", port).__enter__()
    with hold_port("127.0.0.1", port), pytest.raises(BindError), hold_port("127.0.0.1", port):
        pass


def test_connections_of_an_earlier_server_are_no_hindrance():
    with hold_port("127.0.0.1", 0) as [held], listen(port_of(held), share=True) as listener:
        port = port_of(held)
        client = socket.create_connection(("127.0.0.1", port), 5)
        served, _ = listener.accept()
        served.close()  # first: it is the server's end that lingers
        assert client.recv(1) == b""
        client.close()
    with hold_port("127.0.0.1", port) as again, listen(port, share=True):
        assert again == [held]


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::"])  # noqa: S104
def test_every_address_of_a_name_is_held(host: str):
    named = {str(found[4][0]) for found in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    every = named if host == "localhost" else {"127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])}
    with hold_port(host, 0) as held:
        for taken in every:
            with pytest.raises(OSError, match="in use"):
                listen(port_of(held[0]), share=False, host=taken)


def test_a_name_with_an_address_that_is_in_use_or_not_the_machines(monkeypatch: pytest.MonkeyPatch):
    """The one is refused, the other passed over."""
    far, near = ((socket.AF_INET, socket.SOCK_STREAM, 0, "", (name, 0)) for name in ("192.0.2.1", "127.0.0.1"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [far, near])
    with hold_port("name", 0) as [held]:
        assert held.startswith("127.0.0.1:")
        with pytest.raises(BindError, match="in use"):
            hold_port("name", port_of(held)).__enter__()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [far])
    with pytest.raises(BindError, match="port: can't listen on name:0: Cannot assign"):
        hold_port("name", 0).__enter__()


def test_a_name_that_is_none():
    with pytest.raises(BindError, match=r"^port: can't listen on no\.such\.host\.invalid:1: \w"), hold_port(NOBODY, 1):
        pass


def test_addresses_as_people_write_them():
    assert (address("::1", 5), address("localhost", 5)) == ("[::1]:5", "localhost:5")
