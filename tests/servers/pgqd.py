"""PgQ's ticker daemon for one database."""

from __future__ import annotations

import subprocess

from tests.servers.postgres import PostgresServer
from tests.servers.process import Server, program
from tests.servers.waiting import until

START_TIMEOUT = 15.0  # seconds until the first tick


class Pgqd(Server):
    """pgqd in the foreground; `start` returns once it has connected to the database.

    Periods in seconds: `ticker_period` between looks at the queues, `retry_period` between moves of retried
    events, `maint_period` between rotations. `settings`: further lines of its ini file.
    """

    name = 'pgqd'

    def __init__(
        self,
        postgres: PostgresServer,
        dbname: str,
        ticker_period: float = 0.1,
        retry_period: float = 1.0,
        maint_period: float = 120.0,
        **settings: str,
    ) -> None:
        self._program = program('pgqd', 'pgqd')
        super().__init__()
        self._postgres, self._dbname = postgres, dbname
        self._begun = 0  # bytes of its log from former runs
        lines = {
            'base_connstr': f'host=127.0.0.1 port={postgres.port} user=postgres application_name=pgqd',
            'initial_database': 'postgres',
            'database_list': dbname,
            'pidfile': str(self.folder / 'pgqd.pid'),
            'ticker_period': f'{ticker_period:g}',
            'retry_period': f'{retry_period:g}',
            'maint_period': f'{maint_period:g}',
            'syslog': '0',
            **settings,
        }
        text = ''.join(f'{key} = {value}\n' for key, value in lines.items())
        (self.folder / 'pgqd.ini').write_text(f'[pgqd]\n{text}')

    def _launch(self) -> subprocess.Popen[bytes]:
        self._begun = self.log_file.stat().st_size if self.log_file.exists() else 0
        return self._spawn([self._program, str(self.folder / 'pgqd.ini')])

    def _await_ready(self) -> None:
        until(self._connected, START_TIMEOUT, lambda: f'pgqd connects to {self._dbname}:\n{self.log()}')

    def _connected(self) -> bool:
        self.check_alive()
        sql = "select 1 from pg_stat_activity where application_name = 'pgqd' and datname = %s"
        # PgQ's state of another cluster ends its session within milliseconds.
        said = self.log_file.read_bytes()[self._begun :].decode(errors='replace')
        found = f'[{self._dbname}]: pgq version ok' in said
        return found or bool(self._postgres.execute(sql, (self._dbname,)))
