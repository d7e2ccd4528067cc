"""A child process of the supervisor: wires what all share, and turns how it ends into an exit code."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from mikkoo.common import logs, reports
from mikkoo.common import metrics as names
from mikkoo.common.errors import Exit
from mikkoo.common.metrics import Metrics
from mikkoo.common.pipe import Pipe
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import ProcessSettings, Telemetry, telemetry_from_dict

FLUSH_TIMEOUT = 1.0  # seconds for the last reports

Wire = Callable[[Pulse, Metrics], Callable[[], None]]


def run(settings: ProcessSettings, telemetry: Telemetry, end: socket.socket, wire: Wire) -> int:
    """Work until TERM, or until the supervisor at the other end of the pipe is gone.

    `wire`: makes the process's own parts, tells the pulse of them, and returns their loop. Returns the exit
    code, as in errors.Exit.
    """
    pipe = Pipe(end)
    logs.child(pipe, telemetry.levels, name=f'{settings.kind} {settings.name}')
    pulse = Pulse(pipe, telemetry.poll_interval)
    pulse.install()
    metrics = Metrics(telemetry.statsd, f'{settings.kind}.{settings.name}')
    reports.init(telemetry.sentry_dsn, process=settings.kind, worker=settings.name, queue=settings.queue)
    loop = wire(pulse, metrics)
    pulse.chores += [lambda now: _count_lost_records(metrics), metrics.flush_due]
    pulse.handlers['tell'] = lambda message: _take_telemetry(message, pulse, metrics)
    try:
        loop()
        return Exit.OK
    except Exception as error:
        logging.getLogger(f'mikkoo.{settings.kind}').exception('the %s ends: %s', settings.kind, error)
        reports.exception(error)
        return Exit.SOFTWARE
    finally:
        metrics.close()
        reports.flush(FLUSH_TIMEOUT)


def _count_lost_records(metrics: Metrics) -> None:
    count, _ = logs.take_lost()
    metrics.count(names.LOG_DROPPED, count)


def _take_telemetry(message: Mapping[str, Any], pulse: Pulse, metrics: Metrics) -> None:
    telemetry = telemetry_from_dict(message['telemetry'])
    logs.set_levels(telemetry.levels)
    metrics.configure(telemetry.statsd)
    reports.configure(telemetry.sentry_dsn)
    pulse.poll_interval = telemetry.poll_interval
