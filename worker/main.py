"""A worker process: an Entry of the supervisor's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from mikkoo.common import process
from mikkoo.common.metrics import Metrics
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import Telemetry, WorkerSettings
from mikkoo.worker.relay import Relay


def run(settings: WorkerSettings, telemetry: Telemetry, end: socket.socket) -> int:
    """Relay one queue, as process.run tells; hears the supervisor's `retire` too."""

    def wire(pulse: Pulse, metrics: Metrics) -> Callable[[], None]:
        relay = Relay(settings, pulse, metrics)

        def retire(message: Mapping[str, Any]) -> None:
            relay.retired = True

        pulse.numbers = relay.numbers
        pulse.chores.append(relay.measure)
        pulse.handlers['retire'] = retire
        return relay.run

    return process.run(settings, telemetry, end, wire)
