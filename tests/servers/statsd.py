"""A statsd server on a real UDP socket that takes the protocol strictly."""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass

# metric:value|type[|@rate], as the statsd documentation gives it ("Metric types").
LINE = re.compile(
    r'(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*):(?P<value>[+-]?\d+(?:\.\d+)?)'
    r'\|(?P<type>c|g|ms)(?:\|@(?P<rate>[01](?:\.\d+)?))?'
)


@dataclass(frozen=True)
class Sample:
    name: str
    value: float
    type: str
    rate: float


class StatsdServer:
    """Listens on 127.0.0.1 until closed. `mistakes`: whatever was not statsd."""

    def __init__(self, host: str = '127.0.0.1') -> None:
        self._socket = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self.packets: list[bytes] = []
        self.samples: list[Sample] = []
        self.mistakes: list[str] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def __enter__(self) -> StatsdServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def named(self, name: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.name == name]

    def total(self, name: str) -> float:
        """What a server would have counted: sums of counters, numbers of timings, by their rates."""
        return sum((s.value if s.type == 'c' else 1) / s.rate for s in self.named(name))

    def close(self) -> None:
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b'', self._socket.getsockname()[:2])
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while packet := self._socket.recv(65536):
            self.packets.append(packet)
            for line in packet.decode('ascii', 'replace').split('\n'):
                match = LINE.fullmatch(line)
                if match is None:
                    self.mistakes.append(line)
                    continue
                rate = float(match['rate'] or 1)
                self.samples.append(Sample(match['name'], float(match['value']), match['type'], rate))
