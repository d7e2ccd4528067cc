"""An auditor process: an Entry of the supervisor's."""

from __future__ import annotations

import socket
from collections.abc import Callable

from mikkoo.auditor.audit import Auditor
from mikkoo.common import process
from mikkoo.common.metrics import Metrics
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings, Telemetry


def run(settings: AuditorSettings, telemetry: Telemetry, end: socket.socket) -> int:
    """Audit, as process.run tells."""

    def wire(pulse: Pulse, metrics: Metrics) -> Callable[[], None]:
        pulse.numbers = metrics.totals
        return Auditor(settings, pulse, metrics).run

    return process.run(settings, telemetry, end, wire)
