"""A worker process: wires the parts, and turns how it ends into an exit code."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

from mikkoo.common import logs, reports
from mikkoo.common import metrics as names
from mikkoo.common.errors import Exit
from mikkoo.common.metrics import Metrics
from mikkoo.common.pipe import Pipe
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import Telemetry, WorkerSettings, telemetry_from_dict
from mikkoo.worker.relay import Relay

LOGGER = logging.getLogger('mikkoo.worker')

FLUSH_TIMEOUT = 1.0  # seconds for the last reports


def run(settings: WorkerSettings, telemetry: Telemetry, end: socket.socket) -> int:
    """Relay one queue until TERM, or until the supervisor at the other end of the pipe is gone.

    Returns the exit code, as in errors.Exit.
    """
    pipe = Pipe(end)
    logs.child(pipe, telemetry.levels, name=f'worker {settings.name}')
    pulse = Pulse(pipe, telemetry.poll_interval)
    pulse.install()
    metrics = Metrics(telemetry.statsd, f'worker.{settings.name}')
    reports.init(telemetry.sentry_dsn, process='worker', worker=settings.name, queue=settings.queue)
    relay = Relay(settings, pulse, metrics)
    pulse.numbers = relay.numbers
    pulse.chores += [relay.measure, lambda now: _count_lost_records(metrics), metrics.flush_due]
    _listen(pulse, relay, metrics)
    try:
        relay.run()
        return Exit.OK
    except Exception as error:
        LOGGER.exception('the worker ends: %s', error)
        reports.exception(error)
        return Exit.SOFTWARE
    finally:
        metrics.close()
        reports.flush(FLUSH_TIMEOUT)


def _count_lost_records(metrics: Metrics) -> None:
    count, _ = logs.take_lost()
    metrics.count(names.LOG_DROPPED, count)


def _listen(pulse: Pulse, relay: Relay, metrics: Metrics) -> None:
    """Hear the supervisor's `tell` and `retire`."""

    def tell(message: Mapping[str, Any]) -> None:
        telemetry = telemetry_from_dict(message['telemetry'])
        logs.set_levels(telemetry.levels)
        metrics.configure(telemetry.statsd)
        reports.configure(telemetry.sentry_dsn)
        pulse.poll_interval = telemetry.poll_interval

    def retire(message: Mapping[str, Any]) -> None:
        relay.retired = True

    pulse.handlers.update(tell=tell, retire=retire)
