"""The supervisor: waits on its children, signals, the watcher and the control socket at once, and acts."""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mikkoo.common import config, logs, reports
from mikkoo.common.errors import ConfigurationError, Exit
from mikkoo.common.metrics import LOG_DROPPED, RELOAD_FAILURES, RELOADS, Metrics
from mikkoo.common.settings import Settings
from mikkoo.supervisor import signals
from mikkoo.supervisor.children import Children
from mikkoo.supervisor.control import Request, Server
from mikkoo.supervisor.plan import Plan, diff
from mikkoo.supervisor.spawn import ENTRIES
from mikkoo.supervisor.states import DEFAULT_POLICY, NEVER, Policy
from mikkoo.supervisor.terminal import Terminal
from mikkoo.supervisor.watcher import Watcher

LONGEST_WAIT = 5.0  # seconds
SUSPENDED = 2.0  # seconds that a round of the loop takes beyond the longest wait: we were not running
STOP_TIME = 5.0  # seconds that a graceful stop takes at most, the last reports included
LEAST_FLUSH = 0.2  # seconds of it that those reports have even where the children took all

Answer = dict[str, Any]

logger = logging.getLogger('mikkoo.supervisor')


class Supervisor:
    """One configuration's supervisor. `run` returns the exit code; main thread only.

    `settings`: what `load(path)` gave. `on_ready`: called once children are started and commands are heard.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Settings,
        *,
        foreground: bool,
        control_path: str | Path,
        on_ready: Callable[[], None],
        load: Callable[[str], Settings] = config.load,
        sources: Callable[[str], Iterable[str | Path]] = config.sources,
        policy: Policy = DEFAULT_POLICY,
        entries: Mapping[str, str] = ENTRIES,
    ) -> None:
        self._path = os.path.join(os.getcwd(), path)
        self._settings = settings
        self._foreground = foreground
        self._control_path = control_path
        self._on_ready = on_ready
        self._load = load
        self._sources = sources
        self._booted = settings.daemon
        self._stopping = False
        self._stop_due = NEVER
        self._started_at = self._awake_at = time.monotonic()
        self._last_reload: Answer | None = None
        self._log_failure = ''
        self._selector = selectors.DefaultSelector()
        self._metrics = Metrics(settings.telemetry.statsd, 'supervisor')
        self._children = Children(
            self._selector, settings.telemetry, self._metrics, policy=policy, entries=entries
        )

    def run(self) -> int:
        """Supervise until SIGTERM, SIGINT or a `stop`."""
        with ExitStack() as stack:
            self._open(stack)
            self._children.apply(diff(Settings(), self._settings), self._settings.telemetry)
            logger.info('mikkood %s is up, pid %d, with %s', version('mikkoo'), os.getpid(), self._path)
            self._on_ready()
            self._awake_at = time.monotonic()
            while self._children.live or not self._stopping:
                ready = self._selector.select(self._timeout())
                now = self._awake()
                for key, _ in ready:
                    key.data()
                self._tick(now)
            logger.info('mikkood has stopped')
        return Exit.OK

    def _open(self, stack: ExitStack) -> None:
        """Everything that is waited on. What is opened first is closed last."""
        telemetry = self._settings.telemetry
        logs.configure(self._settings.logging, foreground=self._foreground, source=self._path)
        reports.init(telemetry.sentry_dsn, process='supervisor')
        stack.callback(self._flush_reports)
        stack.callback(self._metrics.close)
        stack.callback(self._selector.close)
        self._terminal = Terminal()
        self._signals = signals.Signals()
        stack.callback(self._signals.close)
        self._control = Server(self._control_path, self._selector, self._answer)
        stack.callback(self._control.close)
        self._watcher = Watcher()
        stack.callback(self._watcher.close)
        stack.callback(self._children.close)
        self._watch()
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self._selector.register(self._watcher, selectors.EVENT_READ, self._on_files)

    def _timeout(self) -> float:
        due = min(self._children.due(), self._watcher.due(), self._control.due(), self._metrics.due_at())
        return max(0.0, min(due - time.monotonic(), LONGEST_WAIT))

    def _awake(self) -> float:
        """The time; children that could not be heard, wherever we stood still, are pardoned first.

        This round judges by it, however long its handlers take: what was said meanwhile is heard in the next.
        """
        before, self._awake_at = self._awake_at, time.monotonic()
        if self._awake_at > before + LONGEST_WAIT + SUSPENDED:
            self._children.pardon()
        return self._awake_at

    def _tick(self, now: float) -> None:
        """What time alone brings about."""
        self._children.tick(now)
        self._control.tick(now)
        lost, reason = logs.take_lost()
        if lost:
            self._metrics.count(LOG_DROPPED, lost)
            self._log_failure = reason
        if now >= self._metrics.due_at():
            self._metrics.flush()
        if self._watcher.settled(now) and not self._stopping:
            self._watch()
            self._reload(told=False)

    def _on_signals(self) -> None:
        for number in self._signals.take():
            if number in signals.RELOAD:
                self._on_hangup()
            elif self._stopping:
                self._children.kill(f'a second {number.name}')
            else:
                logger.info('%s: stop', number.name)
                self._stop()

    def _on_hangup(self) -> None:
        """The kernel and the shell may both tell that the terminal is gone: once more is no second TERM."""
        if not self._foreground or not self._terminal.gone():
            logs.reopen()
            logger.info('SIGHUP: reload')
            self._reload(told=True)
        elif not self._stopping:
            logger.info('SIGHUP: stop, the terminal is gone')
            self._stop()

    def _on_files(self) -> None:
        self._watcher.take(time.monotonic())

    def _stop(self, *, for_good: bool = True) -> None:
        if not self._stopping:
            self._stop_due = time.monotonic() + STOP_TIME
        self._stopping = True
        self._children.stop(for_good=for_good)

    def _flush_reports(self) -> None:
        left = self._stop_due - time.monotonic()
        reports.flush(min(reports.EXIT_TIMEOUT, max(LEAST_FLUSH, left)))

    def _watch(self) -> None:
        self._watcher.watch({os.fspath(source) for source in self._sources(self._path)})

    # Reloading

    def _reload(self, *, told: bool) -> Answer:
        """Validate, diff, act. `told`: by somebody, who expects an effect even where no setting changed."""
        if self._stopping:
            return {'exit': int(Exit.FAILURE), 'error': 'mikkood is stopping'}
        try:
            settings = self._load(self._path)
            plan = diff(replace(self._settings, daemon=self._booted), settings)
            if plan.log:
                logs.configure(settings.logging, foreground=self._foreground, source=self._path)
        except ConfigurationError as error:
            return self._refuse([str(mistake) for mistake in error.mistakes])
        except Exception as error:
            logger.exception('a bug: the configuration could not be judged')
            return self._refuse([f'{self._path}: {type(error).__name__}: {error}'])
        if not told and settings == self._settings and self._was_good():
            return {'exit': int(Exit.OK)}
        return self._accept(settings, plan)

    def _was_good(self) -> bool:
        return self._last_reload is None or bool(self._last_reload['ok'])

    def _refuse(self, mistakes: list[str]) -> Answer:
        for mistake in mistakes:
            logger.error('the configuration is not used, the old one stays: %s', mistake)
        self._metrics.count(RELOAD_FAILURES)
        self._last_reload = {'at': time.time(), 'ok': False, 'mistakes': mistakes}
        return {'exit': int(Exit.CONFIG), 'error': '\n'.join(mistakes), 'mistakes': mistakes}

    def _accept(self, settings: Settings, plan: Plan) -> Answer:
        telemetry = settings.telemetry
        self._settings = settings
        for warning in settings.warnings:
            logger.warning('%s', warning)
        if plan.tell:
            self._metrics.configure(telemetry.statsd)
            reports.configure(telemetry.sentry_dsn)
        self._children.apply(plan, telemetry)
        self._metrics.count(RELOADS)
        self._last_reload = {'at': time.time(), 'ok': True, 'mistakes': []}
        result: Answer = {
            'started': [process.name for process in plan.start],
            'restarted': [process.name for process in plan.restart],
            'retired': [process.name for process in plan.retire],
            'kept': list(plan.keep),
            'told': plan.tell,
            'needs_restart': plan.needs_restart,
        }
        logger.info('the configuration is used: %s', ', '.join(f'{what} {result[what]}' for what in result))
        if plan.needs_restart:
            logger.warning('the Daemon section changed: it is used after `mikkood restart`')
        return {'exit': int(Exit.OK), **result, 'warnings': list(settings.warnings)}

    # Commands

    def _answer(self, request: Request) -> Answer:
        match request['command']:
            case 'status':
                return self._status()
            case 'reload':
                return self._reload(told=True)
            case 'restart':
                return self._restart(request.get('name'))
            case 'stop':
                self._stop(for_good=not request.get('restart', False))
                return {'exit': int(Exit.OK), 'pid': os.getpid()}
        error = f'no command {request["command"]!r}; there are status, reload, restart and stop'
        return {'exit': int(Exit.USAGE), 'error': error}

    def _restart(self, name: str | None) -> Answer:
        if self._stopping:
            return {'exit': int(Exit.FAILURE), 'error': 'mikkood is stopping'}
        names = self._children.restart(name)
        if name is not None and not names:
            known = ', '.join(child.name for child in self._children) or 'none'
            return {'exit': int(Exit.FAILURE), 'error': f'no process is called {name!r}; there are: {known}'}
        return {'exit': int(Exit.OK), 'restarted': names}

    def _status(self) -> Answer:
        return {
            'exit': int(Exit.OK),
            'pid': os.getpid(),
            'version': version('mikkoo'),
            'config': self._path,
            'foreground': self._foreground,
            'uptime': round(time.monotonic() - self._started_at, 3),
            'stopping': self._stopping,
            'last_reload': self._last_reload,
            'needs_restart': self._settings.daemon != self._booted,
            'warnings': list(self._settings.warnings),
            'log_failure': self._log_failure,
            'metrics': self._metrics.totals(),
            'children': self._children.status(),
        }
