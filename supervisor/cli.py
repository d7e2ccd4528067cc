"""argv to exit code: every `mikkood` command, and `mikkoo` as its first versions had it.

Only parsing is here; what a command does is imported when it is called, so that a command starts quickly and
that nothing but this small file is loaded where a child process imports the console script again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from mikkoo.common import durations
from mikkoo.common.errors import Exit

# The text of the first versions, which argparse words and breaks differently in every Python.
LEGACY_HELP = """\
usage: mikkoo [-h] [-c CONFIG] [-f]

Mikkoo is a PgQ to RabbitMQ Relay

optional arguments:
  -h, --help            show this help message and exit
  -c CONFIG, --config CONFIG
                        Path to the configuration file
  -f, --foreground      Run the application interactively
"""

EXITS = """\
configuration: -c, else $MIKKOO_CONFIG, else ./etc/mikkoo.yml, else /etc/mikkoo/mikkoo.yml.

exit codes: 0 done; 1 failed, the reason is on standard error; 2 wrong usage; 7 reload, restart NAME: not
running; 69 audit: a database cannot be asked; 70 a bug in mikkood; 77 not permitted; 78 the configuration is
wrong. status: 0 running, 1 dead but left its pidfile, 3 not running, 4 unknown. audit report: 0 clean, 1 not.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`mikkood`."""
    return _guarded(parser().parse_args(argv))


def legacy_main(argv: Sequence[str] | None = None) -> int:
    """`mikkoo [-h] [-c CONFIG] [-f]`: start, as a daemon unless -f."""
    return _guarded(legacy_parser().parse_args(argv, argparse.Namespace(command='start', debug=False)))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog='mikkood', description='Mikkoo is a PgQ to RabbitMQ Relay', epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument('--version', action=_Version, nargs=0, help='show the version and exit')
    _add_common(top, None, False)
    commands = top.add_subparsers(dest='command', metavar='COMMAND', required=True)

    def command(name: str, help: str, **options: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + '.', **options)
        _add_common(made, argparse.SUPPRESS, argparse.SUPPRESS)
        return made

    start = command('start', 'start the daemon; return once it is up')
    _add_foreground(start)
    _add_timeout(command('stop', 'stop the daemon; return once it is gone'))
    restart = command('restart', 'restart the daemon, or one worker or auditor of it')
    restart.add_argument(
        'name', nargs='?', metavar='NAME', help='a worker or an auditor: only it is restarted'
    )
    _add_timeout(restart)
    command('reload', 'have the daemon read its configuration again and say what changed')
    _add_json(command('status', 'show the daemon, its workers and its auditors'))
    check = command('check', 'find every mistake in the configuration')
    check.add_argument('--connect', action='store_true', help='also try the servers that it names')
    _add_json(check)
    command('schema', 'print the JSON Schema of the configuration, for editors')
    command('sql', 'print mikkoo.sql, to be piped into psql')
    _add_unregister(command('unregister', 'remove a consumer from its queue; what it has not read is lost'))
    _add_dead_letters(command('dead-letters', 'list, show, put back or discard events that were given up'))
    _add_audit(command('audit', 'tell whether all that was recorded has arrived; send it again; prune'))
    return top


def legacy_parser() -> argparse.ArgumentParser:
    made = _LegacyParser(prog='mikkoo')
    made.add_argument('-c', '--config', metavar='CONFIG')
    _add_foreground(made)
    return made


class _LegacyParser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return LEGACY_HELP

    def format_usage(self) -> str:
        return LEGACY_HELP.splitlines()[0] + '\n'


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        from importlib.metadata import version

        print(f'mikkood {version("mikkoo")}')
        parser.exit(Exit.OK)


def _add_common(to: argparse.ArgumentParser, config: str | None, debug: Any) -> None:
    """Options for either side of the command: a command's default must not undo what stood before it."""
    to.add_argument('-c', '--config', metavar='CONFIG', default=config, help='path to the configuration file')
    to.add_argument('--debug', action='store_true', default=debug, help='show a traceback with an error')


def _add_foreground(to: argparse.ArgumentParser) -> None:
    to.add_argument('-f', '--foreground', action='store_true', help='run the application interactively')


def _add_json(to: argparse.ArgumentParser) -> None:
    to.add_argument('--json', action='store_true', help='print JSON')


def _add_timeout(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        '--timeout', type=_seconds, default=10.0, metavar='SECONDS',
        help='how long the workers may finish what is in flight before they are killed (default: 10)',
    )  # fmt: skip


def _add_unregister(to: argparse.ArgumentParser) -> None:
    to.add_argument('name', nargs='?', metavar='NAME', help='a worker of the configuration')
    to.add_argument('--queue', help='instead of NAME: the queue')
    to.add_argument('--consumer', help='instead of NAME: the consumer')
    to.add_argument('--postgres-url', metavar='URL', help='instead of NAME: the database')
    to.add_argument('--yes', action='store_true', help='do not ask')


def _actions(to: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    """Adds an action of a command, by its name and what it does."""
    actions = to.add_subparsers(dest='action', metavar='ACTION', required=True)

    def action(name: str, help: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + '.')
        _add_common(made, argparse.SUPPRESS, argparse.SUPPRESS)
        return made

    return action


def _add_dead_letters(to: argparse.ArgumentParser) -> None:
    action = _actions(to)
    listing = action('list', 'list dead letters, the newest first')
    _add_filters(listing)
    listing.add_argument(
        '--limit', type=_positive, default=100, metavar='N', help='at most so many (default: 100)'
    )
    _add_json(listing)
    showing = action('show', 'show all of a dead letter')
    showing.add_argument('ids', nargs=1, type=_positive, metavar='ID', help='as listed')
    showing.add_argument('--worker', metavar='NAME', help='where several databases have the number')
    _add_json(showing)
    for name, help in (
        ('retry', 'put events back into their queues, for their consumers only'),
        ('discard', 'remove dead letters for good'),
    ):
        changing = action(name, help)
        changing.add_argument('ids', nargs='*', type=_positive, metavar='ID', help='as listed')
        changing.add_argument('--all', action='store_true', help='instead of IDs and filters: all of them')
        _add_filters(changing)
        changing.add_argument('--yes', action='store_true', help='do not ask')


def _add_filters(to: argparse.ArgumentParser) -> None:
    place = to.add_mutually_exclusive_group()
    place.add_argument('--worker', metavar='NAME', help='of this worker of the configuration')
    place.add_argument('--queue', help='of this queue')
    to.add_argument('--exchange', help="for this exchange; '' is the default exchange")
    to.add_argument('--routing-key', metavar='KEY', help='with this routing key')
    to.add_argument('--reason', dest='reason_code', metavar='CODE', help='given up for this reason')
    to.add_argument(
        '--older-than', type=_duration, metavar='DURATION', help="given up before, as '2 h', '7d'"
    )
    to.add_argument(
        '--newer-than', type=_duration, metavar='DURATION', help="given up since, as '30s', '5 min'"
    )


def _add_audit(to: argparse.ArgumentParser) -> None:
    action = _actions(to)
    report = action('report', 'count what was recorded and what arrived; exit with 1 unless that is clean')
    report.add_argument('--queue', help='of this queue')
    report.add_argument('--exchange', help="for this exchange; '' is the default exchange")
    report.add_argument(
        '--since', type=_moment, metavar='WHEN', help="no older than '2 h', '7d', or '2026-11-22 10:00'"
    )
    report.add_argument('--all', action='store_true', help='name all that are late or differ, not only 20')
    _add_json(report)
    showing = action('show', 'show all that is stored of one event')
    showing.add_argument('ids', nargs=1, type=_message_id, metavar='MESSAGE_ID', help='its message_id')
    _add_json(showing)
    sending = action('resend', 'publish events again from their records, through PgQ')
    sending.add_argument('ids', nargs='+', type=_message_id, metavar='MESSAGE_ID', help='their message_ids')
    pruning = action('prune', 'delete records, differences and counts')
    pruning.add_argument('ids', nargs='*', type=_message_id, metavar='MESSAGE_ID', help='only of these')
    pruning.add_argument(
        '--before', type=_moment, metavar='WHEN', help="older than '2 h', '7d', or '2026-11-22 10:00'"
    )
    kinds = pruning.add_mutually_exclusive_group()
    kinds.add_argument('--received', action='store_true', help='only records of what has arrived')
    kinds.add_argument('--outstanding', action='store_true', help='only records of what has not')
    pruning.add_argument('--yes', action='store_true', help='do not ask')


def _message_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no message_id of an audited event: a UUID') from None


def _moment(text: str) -> datetime | float:
    """A time, local where it has no offset; or seconds ago."""
    if durations.seconds(text) is not None:
        return _duration(text)
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a duration, as '30s', '2 h', '7d', nor a time, as '2026-11-22 10:00'"
        ) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 1 on')
    return int(text)


def _duration(text: str) -> float:
    seconds = durations.seconds(text)
    if seconds is None or seconds > 100_000 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, as '30s', '5 min', '2 h', '7d'")
    return seconds


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError('between 0 and 3600 seconds')
    return seconds


def _guarded(arguments: argparse.Namespace) -> int:
    """Run a command; every error is one clear message on standard error."""
    debug = arguments.debug or bool(os.environ.get('MIKKOO_DEBUG'))
    try:
        from mikkoo.supervisor.commands import COMMANDS

        code = COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
        return int(code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _forget_stdout()
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            raise
        from mikkoo.common.redaction import redact
        from mikkoo.supervisor.daemon import explain

        code, reason = explain(error)
        print('\n'.join(f'mikkood: {line}' for line in redact(reason).splitlines()), file=sys.stderr)
        if code == Exit.SOFTWARE:
            print('mikkood: run it again with --debug to see where', file=sys.stderr)
        return int(code)


def _forget_stdout() -> None:
    """Nobody reads our output any more: Python must not fail again when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
