"""Events that end their worker's process: each is found and set apart, and its neighbours arrive."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration.product import Product, bodies

GOOD = 5_000
# Two side by side, and one that is only met when the stretch of events one at a time is over.
DEADLY = {1_000, 1_001, 4_900}
WINDOW = 100  # messages in flight
TIMEOUT = 360.0  # seconds: a dozen starts, with back-offs of up to 16 s between
INSERT = """
    select count(mikkoo.insert_event('alpha', '', 'alpha',
        format(case when n = any(%s) then '{"n": %%s, "deadly": true}' else '{"n": %%s}' end, n), null))
    from generate_series(1, %s) as n
"""
# Python imports a module of this name whenever it starts; nothing of it is in the product.
ABORTING = """\
import os, resource
from mikkoo.worker.translate import Translator

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
translate = Translator.__call__

def abort_or_translate(self, event):
    if event.data and '"deadly"' in event.data:
        os.abort()
    return translate(self, event)

Translator.__call__ = abort_or_translate
"""


def test_events_that_abort_the_process_become_dead_letters_and_all_others_arrive(
    product: Product, tmp_path: Path
) -> None:
    modules = tmp_path / 'modules'
    modules.mkdir()
    (modules / 'sitecustomize.py').write_text(ABORTING)
    product.program.environment['PYTHONPATH'] = str(modules)
    product.create_queue('alpha')
    product.arrivals('alpha')
    product.sql(INSERT, list(DEADLY), GOOD + len(DEADLY))
    product.worker('alpha', confirm_window=WINDOW)
    product.run()
    product.until_settled(TIMEOUT)

    arrived = [body['n'] for body in bodies(product.take('alpha'))]
    assert set(arrived) == set(range(1, GOOD + len(DEADLY) + 1)) - DEADLY
    dead = product.sql(
        'select payload::json, attempts, reason_code, reason from mikkoo.dead_letter order by event_id'
    )
    assert [(row[0]['n'], row[2]) for row in dead] == [(n, 'kills_worker') for n in sorted(DEADLY)]
    first, second, third = (row[3] for row in dead)
    assert re.fullmatch(r'the process ended \d times running, .* relayed this event alone', first)
    assert second == 'the process ended while it relayed this event alone'
    assert re.fullmatch(r'the process ended \d times running, .* relayed this event alone', third)
    assert [row[1] for row in dead] == [int((re.findall(r'\d', row[3]) or [1])[0]) for row in dead]
    child = product.children()['alpha']
    assert (child['state'], child['failures']) == ('RUNNING', 0), 'it got past them'
    assert product.sql('select count(*) from mikkoo.batch_progress') == [(0,)]
    log = product.logged()
    assert log.count('one at a time') == log.count('kills_worker') + 2
    assert 'FATAL' not in log
