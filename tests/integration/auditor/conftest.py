"""Events with records, a relay and an auditor, each as the login that it should have."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pika
import pytest

from mikkoo.common.audit_settle import Tally
from mikkoo.common.settings import AuditorSettings, BindingSettings, Telemetry
from tests.conftest import Database
from tests.integration.mikkood import Done
from tests.integration.readable import SCRIPT
from tests.integration.relaying import QUEUE, Scene, Worker
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

PATIENCE = 60.0  # seconds for anything that loaded servers may take their time for
TELEMETRY = Telemetry(levels={'mikkoo': 20}, poll_interval=0.3)
AUDIT_QUEUE = 'mikkoo.audit.proof'
CONFIGURATION = """\
Application:
  workers: {{}}
  auditors:
    proof: {{postgres_url: "{url}", bindings: [{{exchange: mikkoo}}], grace: 1}}
"""
Counts = dict[tuple[str, str], dict[str, int]]


class Audited(Scene):
    """A Scene whose exchange `mikkoo` is audited by `proof`. `folder`: for a configuration of `mikkood`."""

    def __init__(self, database: Database, rabbitmq: RabbitServer, vhost: str, folder: Path) -> None:
        super().__init__(database, rabbitmq, vhost)
        self._configuration = folder / 'mikkoo.yml'
        self._configuration.write_text(CONFIGURATION.format(url=database.auditor_url))
        self._processes = ExitStack()
        self._producer = database.connect(f'producer_{database.name}')
        self.register()

    def close(self) -> None:
        self._processes.close()
        self._producer.close()
        super().close()

    def auditor_settings(self, **changes: Any) -> AuditorSettings:
        made = AuditorSettings(
            name='proof',
            queue=AUDIT_QUEUE,
            postgres_url=self.database.auditor_url,
            bindings=(BindingSettings('mikkoo'),),
            rabbitmq=self.settings().rabbitmq,
            grace=5.0,
        )
        return replace(made, **changes)

    def relay(self, **changes: Any) -> Worker:
        """A relay that has come to its first batch."""
        return self._started(Worker(self.settings(**changes), TELEMETRY))

    def auditor(self, telemetry: Telemetry = TELEMETRY, **changes: Any) -> Worker:
        """An auditor that consumes."""
        return self._started(Worker(self.auditor_settings(**changes), telemetry))

    def _started(self, process: Worker) -> Worker:
        self._processes.enter_context(process)
        process.await_state('running')
        return process

    def record(
        self,
        *bodies: str | None,
        exchange: str | None = 'mikkoo',
        key: str = 'good',
        content_type: str | None = None,
        properties: str | None = None,
    ) -> list[str]:
        """Audited events, as a producer inserts them, ticked; their message_ids."""
        made = []
        with self._producer.cursor() as cursor:
            for body in bodies:
                cursor.execute(
                    'select mikkoo.insert_audited_event(%s, %s, %s, %s, %s, %s, null)',
                    (QUEUE, exchange, key, body, content_type, properties),
                )
                [(event_id,)] = cursor.fetchall()
                made.append(event_id)
        self.tick()
        rows = self.sql('select message_id::text from mikkoo.audit where event_id = any(%s)', made)
        return [message_id for (message_id,) in rows]

    def make_record(self, body: str = 'body', **given: Any) -> str:
        """A record without an event: of a message that the test publishes itself. Its message_id."""
        message_id = str(uuid.uuid4())
        values = {'exchange': 'mikkoo', 'routing_key': 'good', 'content_type': None, 'age': 0.0, **given}
        self.sql(
            """insert into mikkoo.audit (message_id, event_id, queue, exchange, routing_key, payload,
                   content_type, published_at)
               values (%s, 1, %s, %s, %s, %s, %s, now() - %s * interval '1 second')""",
            message_id, QUEUE, values['exchange'], values['routing_key'], body, values['content_type'],
            values['age'],
        )  # fmt: skip
        return message_id

    def publish(
        self,
        message_id: str | None,
        body: str = 'body',
        exchange: str = 'mikkoo',
        key: str = 'good',
        **given: Any,
    ) -> None:
        properties = pika.BasicProperties(message_id=message_id, **given)
        self.channel.basic_publish(exchange, key, body.encode(), properties)

    def counts(self) -> Counts:
        """What is counted, without the zeros and the latencies, by queue and exchange."""
        names = [name for name in asdict(Tally()) if not name.startswith('latency')]
        rows = self.sql(
            f"""select queue, exchange, {', '.join(f'sum({name})::int' for name in names)}
                from mikkoo.audit_tally where auditor = 'proof' group by 1, 2"""
        )
        return {
            (queue, exchange): {name: count for name, count in zip(names, counts, strict=True) if count}
            for queue, exchange, *counts in rows
        }

    def await_counts(self, expected: Counts) -> None:
        until(lambda: self.counts() == expected, PATIENCE, lambda: f'{expected}, not {self.counts()}')

    def outstanding(self) -> set[str]:
        rows = self.sql('select message_id::text from mikkoo.audit where received_at is null')
        return {message_id for (message_id,) in rows}

    def kept(self) -> int:
        return int(self.sql('select count(*) from mikkoo.audit')[0][0])

    def differences(self) -> list[tuple[Any, ...]]:
        return self.sql(
            'select message_id::text, fields, exchange, routing_key, content_type, body_size'
            ' from mikkoo.audit_difference order by seen_at'
        )

    def audit(self, *arguments: str) -> Done:
        """`mikkood audit`, with a grace of one second."""
        command = [str(SCRIPT), '-c', str(self._configuration), 'audit', *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    def report(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """The exit code of `mikkood audit report`, and what it says."""
        done = self.audit('report', '--json', *arguments)
        return done.returncode, json.loads(done.stdout)

    def await_acknowledged(self, queue: str = AUDIT_QUEUE) -> None:
        """Until nothing is left in the auditor's queue, nor in its hand."""

        def done() -> bool:
            listed = self.rabbitmq.ctl(
                'list_queues', '-p', self.vhost, 'name', 'messages', '--no-table-headers'
            )
            return f'{queue}\t0' in listed.splitlines()

        until(done, PATIENCE, f'{queue} is empty', interval=0.2)


@pytest.fixture
def audited(database: Database, rabbitmq: RabbitServer, vhost: str, tmp_path: Path) -> Iterator[Audited]:
    made = Audited(database, rabbitmq, vhost, tmp_path)
    yield made
    made.close()
