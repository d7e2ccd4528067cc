"""A service that answers requests. Its credentials: `users.calculator` in ~/.config/neon/mq_config.json."""

import signal
import threading

from mikkoo.connector import BasicProperties, MQConnector, b64_to_dict, dict_to_b64


class Calculator(MQConnector):
    service_name = 'calculator'
    vhost = '/calculator'

    def __init__(self):
        super().__init__()
        self.register_consumer('requests', self.vhost, 'sums', self.handle_sum)

    def handle_sum(self, channel, method, properties, body):
        request = b64_to_dict(body)
        answer = dict_to_b64({'message_id': request['message_id'], 'sum': sum(request['numbers'])})
        channel.queue_declare(queue=request['reply_queue'])
        channel.basic_publish('', request['reply_queue'], answer, BasicProperties(expiration='1000'))


if __name__ == '__main__':
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    with Calculator():
        told_to_end.wait()
