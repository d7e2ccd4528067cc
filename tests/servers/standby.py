"""A streaming standby of a throwaway PostgreSQL server."""

from __future__ import annotations

from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerError
from tests.servers.waiting import until

NAME = 'standby'
PROMOTION = 30.0  # seconds until a promoted standby takes writes
STREAMING = 30.0  # seconds until it has caught up


class Standby(PostgresServer):
    """A hot standby of `primary`, which has to be running; `start` returns when it streams.

    `synchronous` makes the primary wait for it at every commit, so that a failover loses nothing.
    """

    name = 'standby'

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary = primary

    def synchronous(self) -> None:
        self._primary.execute(f"alter system set synchronous_standby_names = '{NAME}'")
        self._primary.execute('select pg_reload_conf()')
        until(lambda: self._streams('sync'), STREAMING, 'the primary takes it for synchronous')

    def promote(self) -> None:
        """As a failover manager does; returns when it is a primary."""
        self.execute('select pg_promote(false)')
        until(lambda: self.execute('select pg_is_in_recovery()') == [(False,)], PROMOTION, 'it is promoted')

    def _initialize(self) -> None:
        program = str(self._bin / 'pg_basebackup')
        source = f'host=127.0.0.1 port={self._primary.port} user=postgres application_name={NAME}'
        if self._spawn(
            [program, '-D', str(self.data), '-d', source, '-R', '-X', 'stream', '-c', 'fast']
        ).wait():
            raise ServerError(f'pg_basebackup failed:\n{self.log()}')
        lines = [f"{key} = '{value}'\n" for key, value in self._settings.items()]
        with (self.data / 'postgresql.conf').open('a') as file:
            file.writelines(lines)

    def _await_ready(self) -> None:
        super()._await_ready()
        until(lambda: self._streams('async'), STREAMING, lambda: f'it streams:\n{self.log()}')

    def _streams(self, how: str) -> bool:
        sql = 'select state, sync_state from pg_stat_replication where application_name = %s'
        return self._primary.execute(sql, (NAME,)) == [('streaming', how)]
