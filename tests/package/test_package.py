"""The wheel and the sdist hold everything, and the wheel alone makes a working mikkood."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.servers.waiting import until

TOP = Path(__file__).parents[2]
SHIPPED = ['mikkoo.sql', 'etc/mikkoo.yml']
CONFIGURATION = """
Application:
  workers:
    test:
      postgres_url: postgresql://127.0.0.1:1/nowhere
      rabbitmq: {host: '127.0.0.1:1'}
Logging:
  version: 1
  handlers: {file: {class: logging.FileHandler, filename: mikkoo.log}}
  root: {level: INFO, handlers: [file]}
"""
ROOMS = ['common', 'worker', 'connector', 'auditor', 'supervisor']


def run(*command: str | Path, cwd: Path, expect: int = 0, **environment: str) -> str:
    """Run a program away from the source tree; its output, or a failure that shows it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'MIKKOO'))}
    env = {**inherited, **environment}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == expect, f'{command} gave {done.returncode}:\n{done.stdout}'
    return done.stdout


@pytest.fixture(scope='module')
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the source tree and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--outdir', folder, TOP, cwd=folder)
    return folder


@pytest.fixture(scope='module')
def wheel(dist: Path) -> Path:
    (found,) = dist.glob('mikkoo-*-py3-none-any.whl')
    return found


@pytest.fixture(scope='module')
def sdist(dist: Path) -> Path:
    (found,) = dist.glob('mikkoo-*.tar.gz')
    return found


@pytest.fixture(scope='module')
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an empty environment into which only the wheel was installed."""
    home = tmp_path_factory.mktemp('empty')
    venv.create(home, with_pip=True)
    run(home / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', wheel, cwd=home)
    return home / 'bin'


def tracked() -> list[str]:
    """The files that make up the source: known to git where it is a clone, else all there are."""
    if (TOP / '.git').exists():
        return run('git', 'ls-files', cwd=TOP).split('\n')
    return [path.relative_to(TOP).as_posix() for path in TOP.rglob('*') if path.is_file()]


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [name for name in tracked() if name.startswith(tuple(f'{room}/' for room in ROOMS))]
    assert modules
    assert {f'mikkoo/{name}' for name in [*modules, *SHIPPED, 'py.typed']} <= names
    strangers = [name for name in names if not name.startswith(('mikkoo/', 'mikkoo-'))]
    assert not strangers


def test_the_wheel_holds_its_licence_and_bounds_those_whose_private_names_are_used(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith('/METADATA'))
    assert 'License-Expression: BSD-3-Clause' in metadata
    assert any(name.endswith('/licenses/LICENSE') for name in archive.namelist())
    assert re.findall(r'^Requires-Dist: (\S+)<', metadata, re.M) == ['rabbitpy', 'statsd']


def test_the_sdist_holds_the_tests_and_scripts_too(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    wanted = [
        name for name in tracked() if name.startswith(('tests/', 'scripts/', *(f'{r}/' for r in ROOMS)))
    ]
    assert {*wanted, *SHIPPED, 'setup.py', 'pyproject.toml', 'tox.ini', 'LICENSE', 'README.md'} <= names


def test_the_source_tree_builds_the_same_wheel_as_the_sdist(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path, TOP, cwd=tmp_path)
    (direct,) = tmp_path.glob('*.whl')
    contents = [{i.filename: i.CRC for i in zipfile.ZipFile(path).infolist()} for path in (wheel, direct)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize('program', ['mikkood', 'mikkoo'])
def test_help(programs: Path, tmp_path: Path, program: str) -> None:
    assert f'usage: {program}' in run(programs / program, '--help', cwd=tmp_path)


def test_schema(programs: Path, tmp_path: Path) -> None:
    assert '"$schema"' in run(programs / 'mikkood', 'schema', cwd=tmp_path)


def test_the_shipped_files_are_found(programs: Path, tmp_path: Path) -> None:
    code = 'from mikkoo.common import resources as r; print(r.schema_sql()); print(r.example_configuration())'
    printed = run(programs / 'python', '-c', code, cwd=tmp_path)
    assert printed == ''.join((TOP / name).read_text() + '\n' for name in SHIPPED)


def test_the_shipped_example_is_a_valid_configuration(programs: Path, tmp_path: Path) -> None:
    code = 'from mikkoo.common.resources import example_configuration_path as p; print(p())'
    example = run(programs / 'python', '-c', code, cwd=tmp_path).strip()
    run(programs / 'mikkood', 'check', '-c', example, cwd=tmp_path)


def test_a_wrong_configuration_is_refused(programs: Path, tmp_path: Path) -> None:
    (tmp_path / 'wrong.yml').write_text('Application: {workers: {test: {confirm: perhaps}}}\n')
    assert 'confirm' in run(programs / 'mikkood', 'check', '-c', 'wrong.yml', cwd=tmp_path, expect=78)


def test_the_daemon_starts_shows_its_worker_and_stops(programs: Path, tmp_path: Path) -> None:
    """Detaching, and the worker's spawn from an installed console script; there are no servers here."""
    (tmp_path / 'mikkoo.yml').write_text(CONFIGURATION)
    mikkood = (programs / 'mikkood', '-c', 'mikkoo.yml')
    place = {'MIKKOO_RUNTIME_DIR': str(tmp_path / 'run')}
    run(*mikkood, 'start', cwd=tmp_path, **place)
    try:
        until(lambda: 'PAUSED' in run(*mikkood, 'status', cwd=tmp_path, **place), 30, 'the worker waits')
        status = json.loads(run(*mikkood, 'status', '--json', cwd=tmp_path, **place))
        assert status['children'][0]['reason'].startswith('PostgreSQL')
    finally:
        run(*mikkood, 'stop', cwd=tmp_path, **place)
    run(*mikkood, 'status', cwd=tmp_path, expect=3, **place)


def test_the_lower_bounds_under_test_are_those_of_the_package() -> None:
    """tests/lowest.txt is what `tox -e lowest` installs."""
    project = tomllib.loads((TOP / 'pyproject.toml').read_text())['project']
    bounds = [re.sub(r',<.*', '', item).replace('>=', '==') for item in project['dependencies']]
    assert (TOP / 'tests' / 'lowest.txt').read_text().split() == bounds
