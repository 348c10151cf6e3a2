"""Messages of `wire` as bytes on a socket, and back.

A frame is a 4-byte little-endian length followed by one msgpack-encoded message. The sockets of a process that the
supervisor starts lie in a folder of that process alone.
"""

from __future__ import annotations

import msgspec

from tercet.server import wire

CONTROL = "control"
"""The supervisor's socket in the folder of a process: the process connects."""
REQUESTS = "requests"
"""An engine's socket in its folder: front ends connect."""
MAX_FRAME = 1 << 30  # bytes; a longer length prefix is a protocol error
_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder(enc_hook=wire.encode_ids)
to_engine_decoder = msgspec.msgpack.Decoder(wire.ToEngine, dec_hook=wire.decode_ids)
from_engine_decoder = msgspec.msgpack.Decoder(wire.FromEngine)
to_front_end_decoder = msgspec.msgpack.Decoder(wire.ToFrontEnd)


def encode(message: msgspec.Struct) -> bytes:
    """One frame: length prefix and message. Raises ValueError past MAX_FRAME."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"message of {len(body)} bytes exceeds the frame limit of {MAX_FRAME}")
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class FrameReader:
    """Cuts a byte stream into message bodies; feed it what the socket gave."""

    def __init__(self) -> None:
        self._buffer = bytearray()  # a frame that is not complete
        self._wanted = 0  # bytes at which the buffer may hold a complete one

    def feed(self, data: bytes) -> list[memoryview]:
        """The bodies that `data` completed, in order. Raises ValueError on a length past MAX_FRAME."""
        whole: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            whole, self._buffer = self._buffer, bytearray()
        view = memoryview(whole)
        bodies: list[memoryview] = []
        start = 0
        while True:
            self._wanted = _LENGTH_BYTES
            if len(view) - start >= _LENGTH_BYTES:
                length = int.from_bytes(view[start : start + _LENGTH_BYTES], "little")
                if length > MAX_FRAME:
                    raise ValueError(f"frame of {length} bytes exceeds the limit of {MAX_FRAME}")
                self._wanted += length
            if len(view) - start < self._wanted:
                self._buffer += view[start:]
                return bodies
            bodies.append(view[start + _LENGTH_BYTES : start + self._wanted])
            start += self._wanted
