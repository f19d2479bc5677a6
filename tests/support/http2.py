"""Calls as bytes, for what no gRPC client would send."""

from __future__ import annotations


def http2_request(path: bytes) -> bytes:
    """What a client sends to start a call of a method with any bytes as its name."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        length = len(payload).to_bytes(3, "big")
        return length + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in headers.items()
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return preface + frame(4, 0, 0, b"") + frame(1, 5, 1, block)
