"""A message that no auditor saw: reported, sent again by `mikkood audit resend`, and the report is clean."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from mikkoo.common.errors import Exit
from tests.integration.auditor.conftest import PATIENCE, Audited
from tests.integration.readable import SCRIPT
from tests.servers.waiting import until


def test_what_was_lost_is_sent_again(audited: Audited, tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text(f"""\
Application:
  workers: {{}}
  auditors:
    proof: {{postgres_url: "{audited.database.auditor_url}", bindings: [{{exchange: mikkoo}}], grace: 1}}
""")

    def audit(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [SCRIPT, '-c', path, 'audit', *arguments], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout

    def report() -> tuple[int, dict[str, Any]]:
        code, text = audit('report', '--json')
        return code, json.loads(text)

    audited.relay()
    [lost] = audited.record('body')
    audited.await_settled()
    until(lambda: report()[0] == Exit.FAILURE, PATIENCE, 'it is late')
    assert [one['message_id'] for one in report()[1]['late']] == [lost]
    audited.auditor()
    assert audit('resend', lost)[0] == Exit.OK
    audited.tick()
    until(lambda: report()[0] == Exit.OK, PATIENCE, lambda: f'a clean report: {report()}')
    totals = report()[1]['totals']
    assert (totals['recorded'], totals['received'], totals['outstanding']) == (1, 1, 0)
    assert audited.kept() == 0
