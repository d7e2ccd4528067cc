"""Small children for the supervisor's tests: what they do is named by their `consumer_name`.

Like a worker they import nothing of the supervisor. $MIKKOO_TEST_FOLDER is where they leave marks.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mikkoo.common.errors import Exit, MikkooError, Stopping
from mikkoo.common.pipe import Pipe
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import Telemetry, WorkerSettings

FOLDER = Path(os.environ.get('MIKKOO_TEST_FOLDER', '/nonexistent'))


def run(settings: WorkerSettings, telemetry: Telemetry, end: socket.socket) -> int:
    """An Entry, as `worker.main.run`."""
    pulse = Pulse(Pipe(end), telemetry.poll_interval)
    pulse.install()
    numbers: dict[str, Any] = {'prefix': telemetry.statsd.prefix, 'retired': False}

    def tell(message: Mapping[str, Any]) -> None:
        numbers['prefix'] = message['telemetry']['statsd']['prefix']

    def retire(message: Mapping[str, Any]) -> None:
        numbers['retired'] = True

    pulse.handlers.update(tell=tell, retire=retire)
    pulse.numbers = lambda: numbers
    with (FOLDER / f'{settings.name}.starts').open('a') as starts:
        starts.write(f'{os.getpid()}\n')
    return BEHAVIOURS[settings.consumer_name](settings, pulse, numbers)


def steady(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    pulse.state('running')
    try:
        pulse.sleep('the end', 3600)
    except Stopping:
        pulse.beat('leaving')
    if numbers['retired'] and settings.unregister:
        (FOLDER / f'{settings.name}.unregistered').touch()
    return Exit.OK


def standby(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    pulse.state('standby', 'another owns the queue')
    return _wait(pulse)


def _wait(pulse: Pulse) -> int:
    try:
        pulse.sleep('its turn', 3600)
    except Stopping:
        pass
    return Exit.OK


def stubborn(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    """Does not stop when it is asked to."""
    pulse.state('running')
    with pulse.grace(3600):
        return _wait(pulse)


def fragile(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    """Dies while there is a file 'broken'."""
    if (FOLDER / 'broken').exists():
        raise ZeroDivisionError('it is broken')
    return steady(settings, pulse, numbers)


def unfit(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    return Exit.CONFIG


def refuses(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    raise MikkooError('it does not want to')


def modules(settings: WorkerSettings, pulse: Pulse, numbers: dict[str, Any]) -> int:
    """Writes what it has imported."""
    (FOLDER / 'modules').write_text('\n'.join(sorted(sys.modules)))
    return steady(settings, pulse, numbers)


BEHAVIOURS = {
    function.__name__: function for function in (steady, standby, stubborn, fragile, unfit, refuses, modules)
}
