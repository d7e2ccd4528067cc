"""A message that no auditor saw: reported, sent again by `mikkood audit resend`, and the report is clean."""

from __future__ import annotations

from mikkoo.common.errors import Exit
from tests.integration.auditor.conftest import PATIENCE, Audited
from tests.servers.waiting import until


def test_what_was_lost_is_sent_again(audited: Audited) -> None:
    audited.relay()
    [lost] = audited.record('body')
    audited.await_settled()
    until(lambda: audited.report()[0] == Exit.FAILURE, PATIENCE, 'it is late')
    assert [one['message_id'] for one in audited.report()[1]['late']] == [lost]
    audited.auditor()
    assert audited.audit('resend', lost).returncode == Exit.OK
    audited.tick()
    until(lambda: audited.report()[0] == Exit.OK, PATIENCE, lambda: f'a clean report: {audited.report()}')
    totals = audited.report()[1]['totals']
    assert (totals['recorded'], totals['received'], totals['outstanding']) == (1, 1, 0)
    assert audited.kept() == 0
