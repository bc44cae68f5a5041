"""Attaches to a container over containerd's streaming server: a WebSocket, as `kubectl attach` opens one.

usage: python3 -c TEXT URL LINE WANTED      sends LINE to stdin, ends when WANTED has come; prints what came
Standard library alone: it runs in the node, whose loopback the server listens on.
"""

import os
import socket
import sys
import urllib.parse


def main(url: str, line: str, wanted: str) -> None:
    place = urllib.parse.urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 80), 30) as server:
        server.sendall(
            f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
            "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode()
        )
        stream = server.makefile("rb")
        status = stream.readline()
        assert b" 101 " in status, status
        while stream.readline().strip():
            pass
        send(server, b"\0" + line.encode() + b"\n")  # channel 0 is stdin
        seen = b""
        while wanted.encode() not in seen:
            data = receive(stream)
            if data[:1] in (b"\1", b"\2"):
                seen += data[1:]
        sys.stdout.write(seen.decode())


def send(server: socket.socket, data: bytes) -> None:
    """One binary frame (RFC 6455), masked as a client's must be; up to 125 bytes."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    server.sendall(bytes([0x82, 0x80 | len(data)]) + mask + masked)


def receive(stream) -> bytes:  # type: ignore[no-untyped-def]
    """The content of one frame. EOFError when the server has closed."""
    head = stream.read(2)
    if len(head) < 2 or head[0] & 15 == 8:
        raise EOFError("closed")
    length = head[1] & 127
    if length > 125:
        length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
    return bytes(stream.read(length))


if __name__ == "__main__":
    main(*sys.argv[1:])
