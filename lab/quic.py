"""HTTP/3 over QUIC: a server that answers with the peer's address, and a client.

``python -m lab.quic PORT CERTIFICATE KEY`` serves both families; the answer's body is one JSON
line, ``{"protocol": "quic", "address": …, "peer_port": …}``.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ProtocolNegotiated, QuicEvent


class Server(QuicConnectionProtocol):
    """One connection of a client: every request is answered with the source address of its datagrams."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._http: H3Connection | None = None
        self._peer: tuple[str, int] = ("", 0)

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        """Store the sender's address before the datagram is processed."""
        self._peer = addr[0].removeprefix("::ffff:"), addr[1]  # one socket serves both families
        super().datagram_received(data, addr)

    def quic_event_received(self, event: QuicEvent) -> None:
        """Answer a request as soon as its headers have arrived."""
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is None:
            return
        for http_event in self._http.handle_event(event):
            if isinstance(http_event, HeadersReceived):
                self._answer(self._http, http_event.stream_id)

    def _answer(self, http: H3Connection, stream: int) -> None:
        told = {"protocol": "quic", "address": self._peer[0], "peer_port": self._peer[1]}
        http.send_headers(stream, [(b":status", b"200"), (b"content-type", b"application/json")])
        http.send_data(stream, json.dumps(told).encode() + b"\n", end_stream=True)
        self.transmit()


class Client(QuicConnectionProtocol):
    """One connection to a server, for one request."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic)
        self._body = b""
        self._answer: asyncio.Future[bytes] = self._loop.create_future()

    async def get(self, authority: str) -> bytes:
        """The body of the answer to ``GET /``."""
        stream = self._quic.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "https", ":authority": authority, ":path": "/"}
        self._http.send_headers(
            stream, [(key.encode(), value.encode()) for key, value in headers.items()], end_stream=True
        )
        self.transmit()
        return await self._answer

    def quic_event_received(self, event: QuicEvent) -> None:
        """Collect the body."""
        for http_event in self._http.handle_event(event):
            self._gather(http_event)

    def _gather(self, event: H3Event) -> None:
        if isinstance(event, DataReceived):
            self._body += event.data
            if event.stream_ended and not self._answer.done():
                self._answer.set_result(self._body)


async def request(address: str, port: int, source: str | None, timeout: float) -> bytes:
    """One HTTP/3 request, from ``source`` if given; TimeoutError after ``timeout`` seconds."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, idle_timeout=timeout
    )
    v6 = ":" in address
    # aioquic compares this with the sender address that the socket reports: all four parts in IPv6.
    server = (address, port, 0, 0) if v6 else (address, port)
    transport, client = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Client(QuicConnection(configuration=configuration)),
        local_addr=(source or ("::" if v6 else "0.0.0.0"), 0),
    )
    try:
        async with asyncio.timeout(timeout):
            client.connect(server)
            await client.wait_connected()
            body = await client.get(address)
            client.close()
            await client.wait_closed()
            return body
    finally:
        transport.close()


async def main(port: str, certificate: str, key: str) -> None:
    """Serve until the process is ended."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    await serve("::", int(port), configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
