"""An auditor process: wires the parts, and turns how it ends into an exit code."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

from mikkoo.auditor.audit import Auditor
from mikkoo.common import logs, reports
from mikkoo.common import metrics as names
from mikkoo.common.errors import Exit
from mikkoo.common.metrics import Metrics
from mikkoo.common.pipe import Pipe
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings, Telemetry, telemetry_from_dict

LOGGER = logging.getLogger('mikkoo.auditor')

FLUSH_TIMEOUT = 1.0  # seconds for the last reports


def run(settings: AuditorSettings, telemetry: Telemetry, end: socket.socket) -> int:
    """Audit until TERM, or until the supervisor at the other end of the pipe is gone.

    Returns the exit code, as in errors.Exit.
    """
    pipe = Pipe(end)
    logs.child(pipe, telemetry.levels, name=f'auditor {settings.name}')
    pulse = Pulse(pipe, telemetry.poll_interval)
    pulse.install()
    metrics = Metrics(telemetry.statsd, f'auditor.{settings.name}')
    reports.init(telemetry.sentry_dsn, process='auditor', worker=settings.name, queue=settings.queue)
    auditor = Auditor(settings, pulse, metrics)
    pulse.numbers = metrics.totals
    pulse.chores += [lambda now: _count_lost_records(metrics), metrics.flush_due]
    _listen(pulse, metrics)
    try:
        auditor.run()
        return Exit.OK
    except Exception as error:
        LOGGER.exception('the auditor ends: %s', error)
        reports.exception(error)
        return Exit.SOFTWARE
    finally:
        metrics.close()
        reports.flush(FLUSH_TIMEOUT)


def _count_lost_records(metrics: Metrics) -> None:
    count, _ = logs.take_lost()
    metrics.count(names.LOG_DROPPED, count)


def _listen(pulse: Pulse, metrics: Metrics) -> None:
    """Hear the supervisor's `tell`."""

    def tell(message: Mapping[str, Any]) -> None:
        telemetry = telemetry_from_dict(message['telemetry'])
        logs.set_levels(telemetry.levels)
        metrics.configure(telemetry.statsd)
        reports.configure(telemetry.sentry_dsn)
        pulse.poll_interval = telemetry.poll_interval

    pulse.handlers.update(tell=tell)
