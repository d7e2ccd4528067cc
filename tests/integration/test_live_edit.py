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
from tests.integration.product import SAVE, START, STOP, Product, bodies
from tests.integration.readable import SCRIPT
from tests.servers.proxy import Proxy
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


def restarted(product: Product, name: str, edit: Callable[[], object]) -> None:
    """The edit gives this worker another process, and leaves every other its own."""
    before = product.pids()
    edit()
    acted_on(product, f'{name} is restarted', lambda: product.pids()[name] != before[name])
    product.until_running(name)
    assert product.pids() == {**before, name: product.pids()[name]}


def added(product: Product, name: str) -> None:
    before = product.pids()
    product.worker(name)
    product.save()  # renames a new file over the old, or over a link
    acted_on(product, f'{name} is added', lambda: name in product.children())
    product.until_running(name)
    assert product.pids() == {**before, name: product.pids()[name]}


def retired(product: Product, name: str, edit: Callable[[], object]) -> str:
    """The worker goes, every other keeps its process; what the log says about it."""
    before = product.pids()
    del product.workers[name]
    edit()
    acted_on(product, f'{name} is retired', lambda: f'{name} is retired' in product.logged())
    until(lambda: name not in product.children(), STOP, f'{name} has gone')
    gone = before.pop(name)
    assert not alive(gone)
    assert product.pids() == before
    return product.until_logged(f'{name} is retired')


def write_in_two_steps(product: Product) -> None:
    with product.path.open('w') as file:
        file.flush()  # it is empty now
        time.sleep(0.2)
        file.write(product.text())


def swap_for_a_link(product: Product) -> None:
    target, link = product.folder / '..data', product.folder / 'link'
    target.write_text(product.text())
    link.symlink_to(target.name)
    link.rename(product.path)


def sed(product: Product, expression: str) -> None:
    subprocess.run(['sed', '-i', expression, str(product.path)], check=True)


def test_workers_are_added_changed_and_removed_and_a_broken_file_changes_nothing(
    flowing: tuple[Product, Flow],
) -> None:
    product, flow = flowing
    supervisor = product.ask('status')['pid']
    added(product, 'gamma')
    product.workers['beta']['retry_delay'] = 2
    restarted(product, 'beta', lambda: write_in_two_steps(product))
    warning = retired(product, 'gamma', lambda: swap_for_a_link(product))
    check_unregister(product, warning)
    before = product.pids()
    broken(product)
    assert product.pids() == before
    added(product, 'gamma')
    assert product.ask('status')['last_reload']['ok'] is True, 'it is mended'
    restarted(product, 'beta', lambda: sed(product, 's/"retry_delay": 2/"retry_delay": 3/'))
    all_arrived(product, flow)
    assert product.ask('status')['pid'] == supervisor


def broken(product: Product) -> None:
    """A wrong value and half a file: the log and the commands tell where; the daemon goes on."""
    good = product.text()
    product.path.write_text(good.replace('"retry_delay": 2', '"retry_delay": "soon"'))
    line = 1 + good[: good.index('"retry_delay": 2')].count('\n')
    acted_on(product, 'the mistake is seen', lambda: product.ask('status')['last_reload']['ok'] is False)
    told(product, f'{product.path}:{line}:')
    product.path.write_text(good[: len(good) // 2])
    told(product, f'{product.path}:')


def told(product: Product, place: str) -> None:
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
    assert registered(product, 'gamma')


def registered(product: Product, queue: str) -> bool:
    return bool(product.sql("select 1 from pgq.get_consumer_info(%s, 'mikkoo')", queue))


def test_a_renamed_worker_takes_over_and_only_a_retired_one_unregisters(
    flowing: tuple[Product, Flow],
) -> None:
    product, flow = flowing
    product.worker('gamma', unregister=True)
    product.save()
    product.until_running('gamma')
    product.workers['renamed'] = {**product.workers.pop('gamma'), 'queue': 'gamma'}
    product.save()
    product.until_running('renamed')
    until(lambda: 'gamma' not in product.children(), STOP, 'the old one has gone')
    assert 'gamma is retired' not in product.logged()
    all_arrived(product, flow)
    del product.workers['renamed']
    product.save()
    until(lambda: not registered(product, 'gamma'), SAVE + STOP, 'the consumer is unregistered')
    assert registered(product, 'alpha')


@pytest.mark.parametrize('server', ['postgres', 'rabbitmq'])
def test_a_worker_that_hangs_on_a_server_is_mended_by_an_edit(
    product: Product, proxy_factory: Callable[[str, int], Proxy], server: str
) -> None:
    """A server that takes the connection and says nothing."""
    port = product.database.server.port if server == 'postgres' else product.rabbitmq.port
    proxy = proxy_factory('127.0.0.1', port)
    proxy.stall()
    product.create_queue('alpha')
    product.arrivals('alpha')
    product.worker('alpha')
    good = product.workers['alpha']
    if server == 'postgres':
        url = product.database.relay_url.replace(f':{port}/', f':{proxy.port}/')
        product.workers['alpha'] = {**good, 'postgres_url': url}
    else:
        product.workers['alpha'] = {**good, 'rabbitmq': {**good['rabbitmq'], 'port': proxy.port}}
    product.save()
    product.foreground()
    product.sql("select mikkoo.insert_event('alpha', '', 'alpha', '1', null)")
    until(
        lambda: str(proxy.port) in product.children()['alpha']['waits'],
        START,
        lambda: f'{product.children()}',
    )
    product.workers['alpha'] = good
    product.save()
    acted_on(product, 'alpha is restarted', lambda: product.children()['alpha']['restarts'] == 1)
    product.until_running('alpha')
    product.until_settled()
    assert bodies(product.take('alpha')) == [1]
