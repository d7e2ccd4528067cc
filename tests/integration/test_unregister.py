"""`mikkood unregister`: asks, refuses while a relay is at work, and then does it."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mikkoo.common.errors import Exit
from mikkoo.common.pgq import lock_key
from tests.integration.mikkood import Done
from tests.integration.readable import SCRIPT

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.fixture
def consumer(database: Database) -> Database:
    """A registered consumer with three events waiting for it."""
    database.execute("select pgq.create_queue('invoices')")
    database.execute("select pgq.register_consumer('invoices', 'mikkoo')")
    for _ in range(3):
        database.execute("select pgq.insert_event('invoices', 'key', 'data')")
    database.execute("select pgq.force_tick('invoices')")
    database.execute("select pgq.ticker('invoices')")
    return database


def registered(database: Database) -> bool:
    return bool(database.execute("select 1 from pgq.get_consumer_info('invoices', 'mikkoo')"))


def unregister(*arguments: str, **options: object) -> Done:
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def named(database: Database) -> list[str]:
    return ['--queue', 'invoices', '--consumer', 'mikkoo', '--postgres-url', database.relay_url]


def test_by_queue_and_consumer(consumer: Database) -> None:
    done = unregister('unregister', *named(consumer), '--yes')
    assert (done.returncode, done.stderr) == (Exit.OK, '')
    assert 'is unregistered' in done.stdout
    assert not registered(consumer)
    done = unregister('unregister', *named(consumer), '--yes')
    assert done.returncode == Exit.OK and 'was not registered' in done.stdout


def test_by_the_name_of_a_worker(consumer: Database, tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text(
        f'Application: {{workers: {{mine: {{queue: invoices, postgres_url: "{consumer.relay_url}"}}}}}}'
    )
    unknown = unregister('-c', str(path), 'unregister', 'other', '--yes')
    assert unknown.returncode == Exit.FAILURE and 'mine' in unknown.stderr
    assert unregister('-c', str(path), 'unregister', 'mine', '--yes').returncode == Exit.OK
    assert not registered(consumer)


def test_without_anybody_to_ask_nothing_is_done(consumer: Database) -> None:
    refused = unregister('unregister', *named(consumer))
    assert refused.returncode == Exit.USAGE and '--yes' in refused.stderr
    assert registered(consumer)


@pytest.mark.parametrize(
    ('answer', 'gone'), [('n', False), ('', False), ('\x04', False), ('y', True), ('YES', True)]
)
def test_it_asks_and_names_what_is_lost(consumer: Database, answer: str, gone: bool) -> None:
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        [SCRIPT, 'unregister', *named(consumer)], stdin=theirs, stdout=subprocess.PIPE, text=True
    ) as process:
        os.write(terminal, answer.encode() + b'\n')
        shown, _ = process.communicate(timeout=60)
    os.close(terminal)
    os.close(theirs)
    assert 'events or so wait' in shown and 'Unregister? [y/N]' in shown
    assert process.returncode == (Exit.OK if gone else Exit.FAILURE)
    assert registered(consumer) is not gone


def test_a_queue_that_is_not_there(consumer: Database) -> None:
    names = ['invoice' if name == 'invoices' else name for name in named(consumer)]
    refused = unregister('unregister', *names, '--yes')
    assert refused.returncode == Exit.FAILURE
    assert refused.stderr == "mikkood: no queue 'invoice'; did you mean 'invoices'?\n"
    assert registered(consumer)


def test_refused_while_a_relay_is_at_work(consumer: Database) -> None:
    """Even with --yes: it would lose its batch."""
    relay = consumer.connect()
    with relay.cursor() as cursor:
        cursor.execute('select pg_advisory_lock(%s)', (lock_key('invoices', 'mikkoo'),))
    refused = unregister('unregister', *named(consumer), '--yes')
    relay.close()
    assert refused.returncode == Exit.FAILURE and 'a relay is at work' in refused.stderr
    assert registered(consumer)


@pytest.mark.parametrize('arguments', [[], ['mine', '--queue', 'x'], ['--queue', 'x', '--consumer', 'y']])
def test_which_consumer_must_be_clear(arguments: list[str]) -> None:
    refused = unregister('unregister', *arguments)
    assert refused.returncode == Exit.USAGE and '--postgres-url' in refused.stderr
