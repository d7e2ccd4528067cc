"""A service as a process of its own: `python -m tests.integration.connector.effects CONFIG VHOST QUEUE`.

It writes each event that it gets into the table effect, once and in the transaction of the message.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from mikkoo.connector import MQConnector


class Effects(MQConnector):
    service_name = 'effects'

    def __init__(self, file: str, vhost: str, queue: str) -> None:
        super().__init__(json.loads(Path(file).read_text()))
        self.vhost = vhost
        self.register_consumer('effects', None, queue, self.handle, deduplicate='postgres', prefetch=20)

    def handle(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        with self.transaction() as cursor:
            cursor.execute(
                'insert into public.effect (number, redelivered) values (%s, %s)',
                (int(body), method.redelivered),
            )


if __name__ == '__main__':
    with Effects(*sys.argv[1:]):
        signal.pause()
