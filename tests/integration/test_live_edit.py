"""The file is edited while events flow: only what changed is touched, and nothing is lost."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from mikkoo.common.errors import Exit
from tests.integration.mikkood import alive
from tests.integration.product import SAVE, STOP, Product, bodies
from tests.integration.readable import SCRIPT
from tests.servers.waiting import until

QUEUES = ('alpha', 'beta', 'gamma')
INSERT = "select mikkoo.insert_event(%s, '', %s, %s, null)"
PACE = 0.01  # seconds between two transactions


class Flow:
    """A producer that inserts into every queue, an event in each transaction, until it is stopped."""

    def __init__(self, product: Product) -> None:
        self.inserted = 0
        self._connection = product.database.connect(f'producer_{product.database.name}')
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._insert)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()

    def _insert(self) -> None:
        with self._connection.cursor() as cursor:
            while not self._stop.wait(PACE):
                for queue in QUEUES:
                    body = json.dumps({'n': self.inserted})
                    cursor.execute(
                        'select mikkoo.insert_event(%s, %s, %s, %s, null)', (queue, '', queue, body)
                    )
                self.inserted += 1


@pytest.fixture
def flowing(product: Product) -> Iterator[tuple[Product, Flow]]:
    """Workers alpha and beta, and events for both and for gamma."""
    for queue in QUEUES:
        product.create_queue(queue)
        product.arrivals(queue)
    for name in ('alpha', 'beta'):
        product.worker(name)
    product.run()
    flow = Flow(product)
    yield product, flow
    flow.stop()


def acted_on(product: Product, what: str, effect: Callable[[], object]) -> None:
    """Within a second of the save, which has just been made (asserted threefold)."""
    until(effect, SAVE, lambda: f'{what}:\n{product.children()}\n{product.logged()[-5000:]}')


def all_arrived(product: Product, flow: Flow) -> dict[str, Counter[int]]:
    """Stop the flow; how often each event of each queue has arrived: never not at all."""
    flow.stop()
    product.until_settled()
    counts = {}
    for queue in QUEUES:
        messages = product.take(queue)
        counts[queue] = Counter(body['n'] for body in bodies(messages))
        assert sorted(counts[queue]) == list(range(flow.inserted)), f'{queue}: events are lost'
        ids = {properties.message_id for _, properties, _ in messages}
        assert len(ids) == flow.inserted, 'a repeated event keeps its message_id'
    return counts


def test_workers_are_added_changed_and_removed_and_a_broken_file_changes_nothing(
    flowing: tuple[Product, Flow],
) -> None:
    product, flow = flowing
    supervisor = product.ask('status')['pid']
    before = product.pids()

    product.worker('gamma')
    product.save()  # renames a new file over the old
    acted_on(product, 'gamma is added', lambda: 'gamma' in product.children())
    product.until_running('gamma')
    assert product.pids() == {**before, 'gamma': product.pids()['gamma']}

    before = product.pids()
    product.workers['beta']['retry_delay'] = 2
    with product.path.open('w') as file:  # truncates, then writes
        file.flush()
        time.sleep(0.2)
        file.write(product.text())
    acted_on(product, 'beta is changed', lambda: product.pids()['beta'] != before['beta'])
    product.until_running('beta')
    assert product.pids() == {**before, 'beta': product.pids()['beta']}

    before = product.pids()
    del product.workers['gamma']
    target = product.folder / '..data'
    target.write_text(product.text())
    (product.folder / 'link').symlink_to(target.name)
    (product.folder / 'link').rename(product.path)  # a symlink takes the place of the file
    acted_on(product, 'gamma is retired', lambda: 'gamma is retired' in product.logged())
    until(lambda: 'gamma' not in product.children(), STOP, 'gamma has gone')
    assert not alive(before['gamma'])
    assert product.pids() == {name: before[name] for name in ('alpha', 'beta')}
    warned = product.until_logged('gamma is retired')
    check_unregister(product, warned)

    good = product.text()
    product.path.write_text(good.replace('"retry_delay": 2', '"retry_delay": "soon"'))
    line = 1 + good[: good.index('"retry_delay": 2')].count('\n')
    acted_on(product, 'the mistake is seen', lambda: product.ask('status')['last_reload']['ok'] is False)
    broken(product, f'{product.path}:{line}:')
    product.path.write_text(good[: len(good) // 2])
    broken(product, f'{product.path}:')
    assert product.pids() == {name: before[name] for name in ('alpha', 'beta')}

    product.worker('gamma')
    product.save()  # over the symlink
    acted_on(product, 'gamma comes back', lambda: 'gamma' in product.children())
    assert product.ask('status')['last_reload'] == {
        **product.ask('status')['last_reload'],
        'ok': True,
        'mistakes': [],
    }
    product.until_running('gamma')
    before = {**before, 'gamma': product.pids()['gamma']}
    subprocess.run(['sed', '-i', 's/"retry_delay": 2$/"retry_delay": 3/', str(product.path)], check=True)
    subprocess.run(['sed', '-i', 's/"retry_delay": 2,$/"retry_delay": 3,/', str(product.path)], check=True)
    acted_on(product, 'beta is changed by sed', lambda: product.pids()['beta'] != before['beta'])
    product.until_running('beta')
    assert product.pids() == {**before, 'beta': product.pids()['beta']}

    all_arrived(product, flow)
    assert product.ask('status')['pid'] == supervisor


def broken(product: Product, place: str) -> None:
    """The commands tell where; the daemon goes on."""
    refused = product('reload')
    assert refused.returncode == Exit.CONFIG and place in refused.stderr, refused
    shown = product('status')
    assert shown.returncode == Exit.OK and place in shown.stdout, shown
    product.until_logged(f'the old one stays: {place}')


def check_unregister(product: Product, warning: str) -> None:
    """The command that the warning names is one that runs: without a yes it unregisters nobody."""
    command = shlex.split(warning.partition('If it is not to come back: ')[2])
    assert command[:2] == ['mikkood', 'unregister']
    asked = subprocess.run([SCRIPT, *command[1:]], input='no\n', capture_output=True, text=True, timeout=60)
    assert asked.returncode == Exit.USAGE and 'gamma' in asked.stdout + asked.stderr, asked
    assert product.sql("select 1 from pgq.get_consumer_info('gamma', 'mikkoo')")
