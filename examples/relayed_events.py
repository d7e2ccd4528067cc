"""A service that books the orders that mikkood relays, each exactly once.

Its configuration has `users.warehouse` and `postgres_url`, the database with the tables `booking` and
mikkoo.inbox (from `mikkood sql`, or mikkoo.connector.INBOX_SQL where there is no PgQ).
"""

import json
import signal
import threading

from mikkoo.connector import MQConnector


class Warehouse(MQConnector):
    service_name = 'warehouse'
    vhost = '/shop'

    def __init__(self):
        super().__init__()
        self.register_consumer('orders', self.vhost, 'orders', self.book, deduplicate='postgres')

    def book(self, channel, method, properties, body):
        order = json.loads(body)
        with self.transaction() as cursor:
            cursor.execute(
                'insert into booking (article, amount) values (%s, %s)', (order['article'], order['amount'])
            )


if __name__ == '__main__':
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    with Warehouse():
        told_to_end.wait()
