"""Edits of a configuration file keep its comments, its order and its mode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mikkoo.common import config
from mikkoo.common.errors import ConfigurationError
from mikkoo.common.resources import example_configuration_path

TEXT = """\
# top
Application:
    workers:      # all of them
        test:
            # where from
            postgres_url: 'postgresql://localhost/a'  # quoted
            rabbitmq:
                host:
                - a
                - b
        dotted.name:
            postgres_url: postgresql://localhost/b

Logging:
    formatters:
        v: {format: '%(levelname) -10s "%(message)s"'}
# end
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / 'mikkoo.yml'
    path.write_text(TEXT)
    return path


def test_nothing_else_changes(path: Path) -> None:
    config.set_values(path, {})
    assert path.read_text() == TEXT
    config.set_values(path, {'Application.workers.test.postgres_url': 'postgresql://${HOST}/c'})
    assert path.read_text() == TEXT.replace("//localhost/a'  #", "//${HOST}/c'    #")


def test_the_shipped_example_keeps_every_line_but_the_one_set(tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    text = Path(example_configuration_path()).read_text()
    path.write_text(text)
    config.set_values(path, {'Application.workers.test.rabbitmq.port': 5673})
    differing = [
        (a, b) for a, b in zip(text.splitlines(), path.read_text().splitlines(), strict=True) if a != b
    ]
    assert [(a.split('#')[0].strip(), b.split('#')[0].strip()) for a, b in differing] == [
        ('port: 5672', 'port: 5673')
    ]
    assert all('# 5671 if ssl_options' in b for _, b in differing)
    assert config.load(path, {}).workers[0].rabbitmq.nodes == (('localhost', 5673),)


def test_new_keys_mappings_and_removals(path: Path) -> None:
    config.set_values(
        path,
        {
            ('Application', 'workers', 'dotted.name', 'confirm'): False,
            'Application.workers.new': {
                'postgres_url': 'postgresql://localhost/d',
                'rabbitmq': {'host': ['x', 'y']},
            },
            'Daemon.user': 'mikkoo',
        },
        remove=['Application.workers.test', 'Application.statsd'],
    )
    dotted, new = config.load(path, {}).workers
    assert (dotted.name, dotted.confirm, new.rabbitmq.nodes) == (
        'dotted.name',
        False,
        (('x', 5672), ('y', 5672)),
    )
    assert config.load(path, {}).daemon.user == 'mikkoo'
    assert '# all of them' in path.read_text()
    assert '# end' in path.read_text()


def test_an_empty_file_and_a_mode_and_a_link_that_stay(tmp_path: Path) -> None:
    path, link = tmp_path / 'real.yml', tmp_path / 'link.yml'
    path.write_text('# nothing yet\n')
    path.chmod(0o640)
    os.symlink(path, link)
    config.set_values(link, {'Application.workers': {}})
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert config.load(link, {}).workers == ()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['link.yml', 'real.yml']


def test_a_file_that_cannot_be_edited_stays_as_it_is(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'Application\.workers\.test\.postgres_url: is no mapping'):
        config.set_values(path, {'Application.workers.test.postgres_url.x': 1})
    assert path.read_text() == TEXT
    path.write_text('a: [')
    with pytest.raises(ConfigurationError, match='1:5: not YAML'):
        config.set_values(path, {'a': 1})
    assert path.read_text() == 'a: ['
    path.write_text('[a]')
    with pytest.raises(ConfigurationError, match='is no mapping'):
        config.set_values(path, {'a': 1})
