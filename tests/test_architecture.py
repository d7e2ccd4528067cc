"""The house rules that imports can break: who may use which library, and which room may use which.

Read from the source by `ast`, so that an import inside a function counts too. What a process loads in the end
is asked of a real interpreter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
ROOMS = ('common', 'worker', 'supervisor', 'auditor', 'connector')
LONGEST = 300  # lines of a file that needs no stated reason

# Third-party library, and the standard ones worth a home: where alone it may be imported.
HOMES = {
    'rabbitpy': ['common/amqp*.py'],
    'pamqp': ['common/amqp*.py'],
    'psycopg2': ['common/postgres.py'],
    'ruamel': ['common/config*.py'],
    'pydantic': ['common/config*.py'],
    'pydantic_core': ['common/config*.py'],
    'statsd': ['common/metrics.py'],
    'sentry_sdk': ['common/reports.py'],
    'orjson': ['common/pipe.py', 'supervisor/control.py', 'worker/*.py', 'auditor/compare.py'],
    'daemon': ['supervisor/daemon.py'],
    'lockfile': ['supervisor/daemon.py'],
    'watchdog': ['supervisor/watcher.py'],
    'rich': ['supervisor/output.py', 'supervisor/cli.py'],
    'argparse': ['supervisor/cli.py', 'supervisor/commands.py'],
    'multiprocessing': ['supervisor/spawn.py'],
}
# Which rooms a room may import, besides itself; supervisor/spawn.py names the entries of children as strings.
MAY_IMPORT = {
    'common': [],
    'worker': ['common'],
    'supervisor': ['common'],
    'connector': ['common'],
    'auditor': ['common', 'connector'],
}
# A child must load none of these: they cost memory in each worker, and the CLI would be run by its import.
NOT_IN_CHILDREN = ['rich', 'pydantic', 'ruamel', 'argparse', 'watchdog', 'daemon', 'mikkoo.supervisor.cli']


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (TOP / room).rglob('*.py'))


def relative(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, `from a import b` as both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{relative(path)}:{node.lineno}: import by the full name, mikkoo.…'
            assert node.module is not None
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', sources(), ids=relative)
def test_a_library_is_imported_at_home_only(path: Path) -> None:
    for name in imports(path):
        home = HOMES.get(name.split('.')[0])
        assert home is None or any(fnmatch(relative(path), pattern) for pattern in home), (
            f'{relative(path)} imports {name}, whose home is {" or ".join(home)}'
        )


@pytest.mark.parametrize('path', sources(), ids=relative)
def test_every_third_party_library_has_a_home(path: Path) -> None:
    for name in imports(path):
        library = name.split('.')[0]
        assert library in HOMES or library in sys.stdlib_module_names or library == 'mikkoo', (
            f'{relative(path)} imports {name}: give it a home in {Path(__file__).name}'
        )


@pytest.mark.parametrize('path', sources(), ids=relative)
def test_rooms_keep_apart(path: Path) -> None:
    room = relative(path).split('/')[0]
    for name in imports(path):
        parts = name.split('.')
        if parts[0] == 'mikkoo' and len(parts) > 1:
            assert parts[1] in (room, *MAY_IMPORT[room]), f'{relative(path)} imports {name}'


@pytest.mark.parametrize(
    'path',
    [*sources(), *sorted(p for d in ('tests', 'bench', 'scripts') for p in (TOP / d).rglob('*.py'))],
    ids=relative,
)
def test_no_room_is_imported_by_its_bare_name(path: Path) -> None:
    """`common` or `worker` would be whatever package of that name comes first on the path."""
    for name in imports(path):
        assert name.split('.')[0] not in ROOMS, f'{relative(path)} imports {name}'


@pytest.mark.parametrize('path', sources(), ids=relative)
def test_a_long_file_says_why(path: Path) -> None:
    text = path.read_text()
    count = text.count('\n')
    reason = ast.get_docstring(ast.parse(text)) or ''
    assert count <= LONGEST or 'lines' in reason, (
        f'{relative(path)} has {count} lines: split it, or say in its docstring why it has so many lines'
    )


@pytest.mark.parametrize('module', ['mikkoo.worker.main', 'mikkoo.supervisor.spawn'])
def test_a_child_loads_no_more_than_it_needs(module: str) -> None:
    """The spawned interpreter imports spawn.py, and that the entry of its kind."""
    code = f'import sys, {module}; print(*sys.modules, sep="\\n")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd='/')
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded.isdisjoint(NOT_IN_CHILDREN), loaded & set(NOT_IN_CHILDREN)


def test_a_service_loads_no_more_than_it_needs() -> None:
    """No pika at run time; PostgreSQL's and Sentry's libraries where they are asked for."""
    code = 'import sys, mikkoo.connector; print(*sys.modules, sep="\\n")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd='/')
    loaded = set(done.stdout.split())
    assert 'mikkoo.connector.connector' in loaded
    assert loaded.isdisjoint([*NOT_IN_CHILDREN, 'pika', 'psycopg2', 'sentry_sdk'])


def test_the_rules_catch_what_they_forbid(tmp_path: Path) -> None:
    """The reader behind the rules sees every form of import."""
    file = tmp_path / 'room.py'
    file.write_text('import a.b as c\ndef f():\n    from d.e import g\n')
    assert list(imports(file)) == ['a.b', 'd.e', 'd.e.g']
