"""What each `mikkood` command does: arguments to exit code. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mikkoo.common.errors import ConfigurationError, Exit, Mistake
from mikkoo.supervisor import daemon, lifecycle
from mikkoo.supervisor.control import Answer, ControlError, NotAllowed, ask
from mikkoo.supervisor.pidfile import Mark
from mikkoo.supervisor.places import Running, configuration_path
from mikkoo.supervisor.refusal import Refusal

if TYPE_CHECKING:
    from mikkoo.common.settings import Settings

STATUS_TIMEOUT = 5.0  # seconds; a supervisor that answers does so in milliseconds
AUDIT_NAMED = 20  # late and differing ones that a report names
RELOAD_TIMEOUT = 30.0  # seconds; a ${file:} on a slow disk is read anew


def start(arguments: Namespace) -> int:
    return lifecycle.start(configuration_path(arguments.config), arguments.foreground)


def stop(arguments: Namespace) -> int:
    return lifecycle.stop(configuration_path(arguments.config), arguments.timeout)


def restart(arguments: Namespace) -> int:
    path = configuration_path(arguments.config)
    if arguments.name is None:
        return lifecycle.restart(path, arguments.timeout)
    _told(_ask(path, {'command': 'restart', 'name': arguments.name}))
    print(f'{arguments.name} is restarted')
    return Exit.OK


def reload(arguments: Namespace) -> int:
    from mikkoo.supervisor.output import changes

    answer = _ask(configuration_path(arguments.config), {'command': 'reload'}, RELOAD_TIMEOUT)
    print(changes(_told(answer)))
    return Exit.OK


def status(arguments: Namespace) -> int:
    from mikkoo.supervisor import output

    try:
        path = configuration_path(arguments.config)
        answer = _status(lifecycle.find(path))
        if answer['state'] == 'not running' and (absent := lifecycle.absent(path)):
            answer['error'] = absent.strip(' ()')
    except Refusal as refusal:
        answer = {'exit': Exit.UNKNOWN, 'state': 'unknown', 'error': str(refusal)}
    code = int(answer.pop('exit'))
    if arguments.json:
        print(json.dumps(answer, indent=2))
    else:
        output.status(answer)
    return code


def check(arguments: Namespace) -> int:
    path = configuration_path(arguments.config)
    if arguments.json:
        return _check_json(path, arguments.connect)
    settings = lifecycle.load(path)
    _require_owner(path, settings)
    print(f'{path} is valid ({lifecycle.processes(settings)})')
    if not arguments.connect:
        return Exit.OK
    from mikkoo.supervisor import output, probes
    from mikkoo.supervisor.probe import verdict

    return verdict(output.probes(probes.run(settings)))


def schema(arguments: Namespace) -> int:
    from mikkoo.common import config

    print(json.dumps(config.json_schema(), indent=2))
    return Exit.OK


def sql(arguments: Namespace) -> int:
    from mikkoo.common.resources import schema_sql

    sys.stdout.write(schema_sql())
    return Exit.OK


def unregister(arguments: Namespace) -> int:
    from mikkoo.supervisor.unregister import choose, unregister

    given = (arguments.name, arguments.queue, arguments.consumer, arguments.postgres_url)
    return unregister(choose(arguments.config, *given), ask=not arguments.yes)


def dead_letters(arguments: Namespace) -> int:
    from mikkoo.common.pgq_dead_letters import Filter
    from mikkoo.supervisor import dead_letters

    action, given = arguments.action, vars(arguments)
    fields: dict[str, Any] = {name: given.get(name) for name in Filter.__dataclass_fields__}
    which = Filter(**fields | {'ids': tuple(given.get('ids') or ()) or None})
    if action in ('retry', 'discard') and arguments.all is (
        which != Filter() or arguments.worker is not None
    ):
        raise Refusal('give either IDs, filters or both, or --all', Exit.USAGE)
    with dead_letters.opened(arguments.config, given.get('worker'), which) as (databases, which):
        if action == 'list':
            return dead_letters.list_(databases, which, arguments.limit, as_json=arguments.json)
        if action == 'show':
            return dead_letters.show(databases, which, as_json=arguments.json)
        return dead_letters.change(action, databases, which, ask=not arguments.yes)


def audit(arguments: Namespace) -> int:
    from mikkoo.common.errors import DatabaseLost
    from mikkoo.supervisor import audit

    ids = tuple(dict.fromkeys(getattr(arguments, 'ids', ())))
    action = arguments.action
    kinds: tuple[str, ...] = ()
    if action == 'prune':
        kinds = _prunable(arguments, ids)
    with audit.opened(arguments.config) as (databases, failures):
        if action == 'report':
            scope = (arguments.queue, arguments.exchange, arguments.since)
            most = None if arguments.all else AUDIT_NAMED
            return audit.report(databases, failures, scope, most, as_json=arguments.json)
        audit.require_all(failures)
        try:
            if action == 'show':
                return audit.show(databases, ids[0], as_json=arguments.json)
            if action == 'resend':
                return audit.resend(databases, ids)
            return audit.prune(databases, kinds, arguments.before, ids or None, ask=not arguments.yes)
        except DatabaseLost as error:
            raise Refusal(str(error), Exit.UNAVAILABLE) from error


def _prunable(arguments: Namespace, ids: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds that are to be pruned. Raises Refusal where that is not said."""
    from mikkoo.supervisor import audit

    chosen = tuple(kind for kind in ('received', 'outstanding') if getattr(arguments, kind))
    if ids:
        if chosen or arguments.before is not None:
            raise Refusal('give either MESSAGE_IDs, or --before, --received, --outstanding', Exit.USAGE)
        return audit.OF_RECORDS
    if not chosen and arguments.before is None:
        raise Refusal('give MESSAGE_IDs, --before, --received or --outstanding', Exit.USAGE)
    return chosen or audit.ALL


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    function.__name__.replace('_', '-'): function
    for function in (
        start,
        stop,
        restart,
        reload,
        status,
        check,
        schema,
        sql,
        unregister,
        dead_letters,
        audit,
    )
}


def _ask(path: Path, request: dict[str, str], timeout: float = 10.0) -> Answer:
    """Ask the running mikkood. Raises Refusal where none runs or it may not be asked."""
    found = lifecycle.find(path)
    if not isinstance(found, Running):
        raise Refusal(f'not running{lifecycle.absent(path)}', Exit.NO_DAEMON)
    try:
        return ask(found.places.control, request, timeout)
    except NotAllowed as error:
        raise Refusal(f'pid {found.pid} belongs to another user: {error}', Exit.NOPERM) from error
    except ControlError as error:
        raise Refusal(f'pid {found.pid} runs, but does not answer: {error}') from error


def _told(answer: Answer) -> Answer:
    """An answer without error. Raises Refusal with its reason."""
    if answer['exit'] != Exit.OK:
        raise Refusal(str(answer.get('error') or 'refused without a reason'), Exit(answer['exit']))
    return answer


def _status(found: Running | Mark | None) -> dict[str, Any]:
    """The documented answer of `status --json`, and `exit`."""
    if found is None:
        return {'exit': Exit.NOT_RUNNING, 'state': 'not running'}
    if not isinstance(found, Running):
        return {'exit': Exit.DEAD, 'state': 'dead', 'pid': found.pid, 'pidfile': str(found.path)}
    known = {'state': 'running', 'pid': found.pid, 'foreground': found.mark.foreground}
    try:
        answer = ask(found.places.control, {'command': 'status'}, STATUS_TIMEOUT)
    except NotAllowed as error:
        return {**known, 'exit': Exit.OK, 'error': f'only its own user may ask it more ({error})'}
    except ControlError as error:
        return {**known, 'exit': Exit.UNKNOWN, 'state': 'unknown', 'error': str(error)}
    return {**known, **answer}


def _require_owner(path: Path, settings: Settings) -> None:
    """`start` would refuse it as well. Raises ConfigurationError."""
    if mistakes := [
        Mistake(str(path), 0, 0, f'Daemon.{kind}', repr(name), f'a {kind} of this machine is allowed')
        for kind, name in daemon.strangers(settings.daemon)
    ]:
        raise ConfigurationError(*mistakes)


def _check_json(path: Path, connect: bool) -> int:
    from dataclasses import asdict

    from mikkoo.common import config

    answer: dict[str, Any] = {'configuration': str(path), 'valid': True, 'mistakes': [], 'warnings': []}
    try:
        settings = config.load(path)
        _require_owner(path, settings)
    except ConfigurationError as error:
        answer.update(valid=False, mistakes=[asdict(mistake) for mistake in error.mistakes])
        print(json.dumps(answer, indent=2))
        return Exit.CONFIG
    answer['warnings'] = list(settings.warnings)
    code = Exit.OK
    if connect:
        from mikkoo.supervisor import probes
        from mikkoo.supervisor.probe import verdict

        results = list(probes.run(settings))
        answer['probes'] = [asdict(result) for result in results]
        code = verdict(results)
    print(json.dumps(answer, indent=2))
    return code
