"""A throwaway PostgreSQL server with PgQ."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.process import Server, ServerError, free_port, program
from tests.servers.waiting import until

if TYPE_CHECKING:
    from psycopg2.extensions import connection

SCHEMA_FILE = Path(__file__).parents[2] / 'mikkoo.sql'
START_TIMEOUT = 30.0  # seconds; a crashed server recovers first
STOP_SIGNALS = {'smart': signal.SIGTERM, 'fast': signal.SIGINT, 'immediate': signal.SIGQUIT}


def installed_versions() -> list[int]:
    """Major versions of PostgreSQL under Debian's folder that have the pgq extension, newest first."""
    found = Path('/usr/share/postgresql').glob('*/extension/pgq.control')
    names = [path.parts[-3] for path in found]
    return sorted((int(name) for name in names if re.fullmatch(r'\d+', name)), reverse=True)


class PostgresServer(Server):
    """PostgreSQL on 127.0.0.1, trust authentication, superuser `postgres`; as root, run as that system user.

    `fsync` off is for tests only. `settings`: further postgresql.conf settings.
    """

    name = 'postgres'
    stop_signal = signal.SIGINT

    def __init__(self, *, fsync: bool = False, **settings: str) -> None:
        versions = installed_versions()
        folder = f'/usr/lib/postgresql/{versions[0]}/bin' if versions else ''
        self._initdb = program('initdb', 'postgresql-NN-pgq3', folder)
        self._bin = Path(self._initdb).parent
        super().__init__('postgres' if os.geteuid() == 0 else None)
        self.port = free_port()
        self._settings = {
            'port': str(self.port),
            'listen_addresses': '127.0.0.1',
            'unix_socket_directories': str(self.folder),
            'fsync': 'on' if fsync else 'off',
            'max_connections': '200',
            'shared_buffers': '64MB',
            'timezone': 'UTC',
            **settings,
        }

    @property
    def data(self) -> Path:
        return self.folder / 'data'

    def url(self, dbname: str = 'postgres', user: str = 'postgres') -> str:
        """A libpq URL of a database."""
        return f'postgresql://{user}@127.0.0.1:{self.port}/{dbname}'

    def connect(self, dbname: str = 'postgres', user: str = 'postgres') -> connection:
        """A psycopg2 connection in autocommit mode."""
        import psycopg2

        opened = psycopg2.connect(self.url(dbname, user))
        opened.autocommit = True
        return opened

    def execute(self, sql: str, parameters: Any = None, *, dbname: str = 'postgres') -> list[tuple[Any, ...]]:
        """Run one statement as superuser and return its rows, [] where it gives none."""
        opened = self.connect(dbname)
        try:
            with opened.cursor() as cursor:
                cursor.execute(sql, parameters)
                return cursor.fetchall() if cursor.description else []
        finally:
            opened.close()

    def create_database(self, name: str, *, pgq: bool = True, mikkoo: bool = True) -> str:
        """Make a database, with the extension pgq and with mikkoo.sql where that file exists; its URL."""
        self.execute(f'create database "{name}"')
        if pgq:
            self.execute('create extension pgq', dbname=name)
        if mikkoo and SCHEMA_FILE.exists():
            self.run_file(SCHEMA_FILE, name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f'drop database if exists "{name}" with (force)')

    def run_file(self, path: Path, dbname: str) -> None:
        """Run an SQL file by psql, as a user would. ServerError with psql's words if a statement fails."""
        command = [
            str(self._bin / 'psql'),
            '-Xq',
            '-v',
            'ON_ERROR_STOP=1',
            '-d',
            self.url(dbname),
            '-f',
            str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f'{path.name}: {done.stderr.strip()}')

    def stop(self, mode: str = 'fast') -> None:
        """Stop as `pg_ctl stop -m MODE` does: 'smart', 'fast' or 'immediate'."""
        self._end(STOP_SIGNALS[mode])

    def _launch(self) -> subprocess.Popen[bytes]:
        if not self.data.exists():
            self._initialize()
        return self._spawn([str(self._bin / 'postgres'), '-D', str(self.data)])

    def _initialize(self) -> None:
        options = ['-A', 'trust', '-U', 'postgres', '-E', 'UTF8', '--no-locale', '--no-sync']
        if self._spawn([self._initdb, '-D', str(self.data), *options]).wait():
            raise ServerError(f'initdb failed:\n{self.log()}')
        lines = [f"{key} = '{value}'\n" for key, value in self._settings.items()]
        with (self.data / 'postgresql.conf').open('a') as file:
            file.writelines(lines)

    def _await_ready(self) -> None:
        until(self._answers, START_TIMEOUT, lambda: f'PostgreSQL accepts connections:\n{self.log()}')

    def _answers(self) -> bool:
        import psycopg2

        self.check_alive()
        try:
            self.execute('select 1')
        except psycopg2.OperationalError:
            return False
        return True
