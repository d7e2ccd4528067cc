"""A Sentry project on a real HTTP socket: takes envelopes apart as Sentry does, or hangs, or refuses."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class SentryServer:
    """`events`: the payloads of event items in the order of their arrival. `status`: what it answers with.

    While `hanging` is set it takes a request and does not answer.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.mistakes: list[str] = []
        self.requests = 0
        self.status = 200
        self.released = threading.Event()
        self.released.set()
        self._http = ThreadingHTTPServer(('127.0.0.1', 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={'poll_interval': 0.02})
        self._thread.start()

    def __enter__(self) -> SentryServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        return f'http://publickey@127.0.0.1:{self._http.server_port}/42'

    def hang(self) -> None:
        self.released.clear()

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def take(self, path: str, auth: str, body: bytes) -> None:
        """One envelope: a header line, then items of a header line and a payload of its `length`."""
        self.requests += 1
        if path != '/api/42/envelope/' or 'sentry_key=publickey' not in auth:
            self.mistakes.append(f'{path} {auth}')
        header, _, rest = body.partition(b'\n')
        if not isinstance(json.loads(header), dict):
            self.mistakes.append(f'envelope header {header!r}')
        while rest:
            line, _, rest = rest.partition(b'\n')
            item = json.loads(line)
            payload, rest = rest[: item['length']], rest[item['length'] :].removeprefix(b'\n')
            if item['type'] == 'event':
                self.events.append(json.loads(payload))
            else:
                self.mistakes.append(f'unexpected item {item}')


def _handler(server: SentryServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers['Content-Length']))
            if self.headers['Content-Encoding'] == 'gzip':
                body = gzip.decompress(body)
            if not server.released.is_set():
                server.requests += 1
                server.released.wait()
                return
            server.take(self.path, self.headers['X-Sentry-Auth'], body)
            self.send_response(server.status)
            self.send_header('Content-Length', '2')
            self.end_headers()
            self.wfile.write(b'{}')

        def log_message(self, format: str, *args: object) -> None:
            """Not on the screen."""

    return Handler
