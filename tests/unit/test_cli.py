"""Arguments, help texts, and one clear line for every error."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mikkoo.common.errors import Exit
from mikkoo.supervisor import cli, commands
from mikkoo.supervisor.places import CONFIGURATION_PATHS, CONFIGURATION_VARIABLE
from mikkoo.supervisor.refusal import Refusal

# As the first versions print it (their documentation lost the indentation).
REFERENCE_HELP = """
usage: mikkoo [-h] [-c CONFIG] [-f]

Mikkoo is a PgQ to RabbitMQ Relay

optional arguments:
-h, --help show this help message and exit
-c CONFIG, --config CONFIG
Path to the configuration file
-f, --foreground Run the application interactively
"""


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f'import sys; from mikkoo.supervisor.cli import {program}; sys.exit({program}())'
    return subprocess.run(
        [sys.executable, '-c', code, *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_old_command_has_the_old_help() -> None:
    shown = run('legacy_main', '-h')
    assert shown.returncode == Exit.OK
    assert shown.stdout.split() == REFERENCE_HELP.split()


def test_the_old_command_shows_its_usage_with_a_mistake() -> None:
    shown = run('legacy_main', '--nonsense')
    assert shown.returncode == Exit.USAGE
    assert shown.stderr.splitlines()[0] == 'usage: mikkoo [-h] [-c CONFIG] [-f]'


def test_the_old_help_tells_the_options_that_are_parsed() -> None:
    given = cli.legacy_parser().parse_args(['-c', 'x.yml', '-f'])
    assert (given.config, given.foreground) == ('x.yml', True)
    given = cli.legacy_parser().parse_args(['--config', 'x.yml', '--foreground'])
    assert (given.config, given.foreground) == ('x.yml', True)
    given = cli.legacy_parser().parse_args([])
    assert (given.config, given.foreground) == (None, False)


def test_the_old_command_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setitem(commands.COMMANDS, 'start', lambda given: started.append(given) or 0)
    assert cli.legacy_main(['-f', '-c', 'x.yml']) == Exit.OK
    assert (started[0].config, started[0].foreground) == ('x.yml', True)


@pytest.mark.parametrize(
    'argv', [['-c', 'x.yml', 'status'], ['status', '-c', 'x.yml'], ['status', '--config=x.yml']]
)
def test_the_configuration_may_stand_on_either_side(argv: list[str]) -> None:
    assert cli.parser().parse_args(argv).config == 'x.yml'


def test_the_nearer_configuration_wins() -> None:
    assert cli.parser().parse_args(['-c', 'a', 'status', '-c', 'b']).config == 'b'


@pytest.mark.parametrize(
    'argv', [[], ['nonsense'], ['start', 'name'], ['stop', '--timeout', '-1'], ['stop', '--timeout', 'x']]
)
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    assert left.value.code == Exit.USAGE
    assert 'usage: mikkood' in capsys.readouterr().err


@pytest.mark.parametrize('command', sorted(commands.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, '--help'])
    assert left.value.code == Exit.OK
    assert f'usage: mikkood {command}' in capsys.readouterr().out


def test_the_parser_and_the_table_have_the_same_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(['--help'])
    shown = capsys.readouterr().out
    assert all(f'\n    {command} ' in shown for command in commands.COMMANDS)
    assert cli.EXITS in shown


def test_help_tells_the_exit_codes_and_where_the_configuration_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(['--help'])
    shown = capsys.readouterr().out
    assert all(f' {int(code)} ' in shown for code in Exit)
    assert all(place in shown for place in (CONFIGURATION_VARIABLE, *CONFIGURATION_PATHS))


@pytest.mark.parametrize('action', ['list', 'show', 'retry', 'discard'])
def test_every_action_on_dead_letters_has_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(['dead-letters', action, '--help'])
    assert left.value.code == Exit.OK
    assert f'usage: mikkood dead-letters {action}' in capsys.readouterr().out


def test_dead_letters_by_filters() -> None:
    given = cli.parser().parse_args(
        ['-c', 'a', 'dead-letters', 'retry', '7', '8', '--queue', 'q', '--exchange', '', '--routing-key', 'k',
         '--reason', 'returned', '--older-than', '2 h', '--newer-than', '7d']
    )  # fmt: skip
    assert (given.config, given.action, given.ids, given.all, given.yes) == (
        'a',
        'retry',
        [7, 8],
        False,
        False,
    )
    assert (given.worker, given.queue, given.exchange, given.routing_key) == (None, 'q', '', 'k')
    assert (given.reason_code, given.older_than, given.newer_than) == ('returned', 7200, 604800)


def test_a_limit_of_dead_letters() -> None:
    assert cli.parser().parse_args(['dead-letters', 'list']).limit == 100
    assert cli.parser().parse_args(['dead-letters', 'list', '--limit', '5']).limit == 5


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ([], 'ACTION'),
        (['nonsense'], 'nonsense'),
        (['show'], 'ID'),
        (['show', 'x'], "'x' is no number"),
        (['show', '1', '2'], '2'),
        (['retry', '0'], "'0' is no number"),
        (['retry', str(2**63)], 'is no number'),
        (['list', '--limit', '0'], "'0' is no number"),
        (['list', '--older-than', '5 weeks'], "'5 weeks' is no duration, as '30s'"),
        (['list', '--newer-than', '-5s'], 'newer-than'),
        (['list', '--newer-than', '9' * 400 + 'd'], 'is no duration'),
        (['list', '--worker', 'w', '--queue', 'q'], 'not allowed with'),
        (['list', '--yes'], '--yes'),
        (['discard', '--json'], '--json'),
    ],
)
def test_wrong_usage_of_dead_letters(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(['dead-letters', *arguments])
    assert left.value.code == Exit.USAGE
    assert word in capsys.readouterr().err


@pytest.mark.parametrize('action', ['retry', 'discard'])
@pytest.mark.parametrize('arguments', [[], ['--yes'], ['1', '--all'], ['--all', '--worker', 'w']])
def test_which_dead_letters_must_be_clear(
    action: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any configuration is read."""
    assert cli.main(['-c', '/nonexistent', 'dead-letters', action, *arguments]) == Exit.USAGE
    assert capsys.readouterr().err == 'mikkood: give either IDs, filters or both, or --all\n'


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(['--version'])
    assert left.value.code == Exit.OK
    assert capsys.readouterr().out.startswith('mikkood 4.')


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def status(given: object) -> int:
        raise error

    monkeypatch.setitem(commands.COMMANDS, 'status', status)
    return cli.main(['status'])


def test_a_refusal_is_its_reason_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(Refusal('not today', Exit.NOPERM), monkeypatch) == Exit.NOPERM
    assert capsys.readouterr().err == 'mikkood: not today\n'


def test_a_bug_is_named_and_leads_to_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv('MIKKOO_DEBUG', raising=False)
    assert fail_with(KeyError('x'), monkeypatch) == Exit.SOFTWARE
    shown = capsys.readouterr().err
    assert "KeyError: 'x'" in shown and '--debug' in shown and 'Traceback' not in shown


@pytest.mark.parametrize('error', [Refusal, RuntimeError])
def test_no_password_is_said(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error('cannot use postgresql://joe:hunter2@db/shop'), monkeypatch)
    assert 'postgresql://joe:***@db/shop' in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MIKKOO_DEBUG', '1')
    with pytest.raises(KeyError):
        fail_with(KeyError('x'), monkeypatch)


def test_an_interruption_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == ''


def test_a_closed_pipe_is_no_error() -> None:
    """`mikkood schema | head -0`: the reader is gone before we write."""
    code = 'import sys; from mikkoo.supervisor.cli import main; sys.exit(main(["schema"]))'
    reader, writer = os.pipe()
    os.close(reader)
    shown = subprocess.run([sys.executable, '-c', code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (shown.returncode, shown.stderr) == (141, b'')


def test_the_console_script_loads_nothing_heavy() -> None:
    """What a child loads where it imports the console script again."""
    code = (
        'import sys; import mikkoo.supervisor.cli\n'
        'heavy = {"rich", "pydantic", "ruamel", "watchdog", "daemon", "psycopg2", "sentry_sdk", "rabbitpy"}\n'
        'print(sorted(heavy & set(sys.modules)))'
    )
    shown = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert shown.stdout == '[]\n'


def test_no_configuration_says_where_it_looked(tmp_path: Path) -> None:
    code = 'import sys; from mikkoo.supervisor.cli import main; sys.exit(main(["check"]))'
    environment = {name: value for name, value in os.environ.items() if name != 'MIKKOO_CONFIG'}
    shown = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )
    assert shown.returncode == Exit.CONFIG
    assert 'MIKKOO_CONFIG' in shown.stderr and './etc/mikkoo.yml' in shown.stderr


@pytest.mark.parametrize('action', ['report', 'show', 'resend', 'prune'])
def test_every_action_on_the_audit_has_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(['audit', action, '--help'])
    assert ended.value.code == Exit.OK
    assert f'usage: mikkood audit {action}' in capsys.readouterr().out


def test_times_of_the_audit() -> None:
    """A duration, or a time, which is local where it has no offset."""

    def since(text: str) -> object:
        return cli.parser().parse_args(['audit', 'report', '--since', text]).since

    assert (since('2 h'), since('0s')) == (7200.0, 0.0)
    assert since('2026-11-22T10:00:00+01:00') == datetime(2026, 11, 22, 9, tzinfo=UTC)
    assert since('2026-11-22 10:00') == datetime(2026, 11, 22, 10).astimezone()
    assert since('2026-11-22') == datetime(2026, 11, 22).astimezone()


def test_message_ids_are_written_in_one_way() -> None:
    ids = cli.parser().parse_args(['audit', 'resend', '0D8F0000-0000-4000-8000-00000000000A']).ids
    assert ids == ['0d8f0000-0000-4000-8000-00000000000a']


@pytest.mark.parametrize(
    'arguments',
    [['--since', ''], ['--since', '10'], ['--since', '200000d'], ['--since', '2026-13-01'], ['nobody']],
)
def test_wrong_times_of_the_audit(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(['audit', 'report', *arguments])
    assert ended.value.code == Exit.USAGE
    assert 'usage: mikkood' in capsys.readouterr().err
