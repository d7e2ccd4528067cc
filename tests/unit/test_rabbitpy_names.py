"""rabbitpy's private names on which common/amqp_transport.py relies: an upgrade that moves one fails here."""

from __future__ import annotations

import inspect
import queue
from importlib.metadata import requires, version

from rabbitpy import channel0, connection, events, heartbeat, io

ARGUMENTS = {
    'host': 'h', 'port': 1, 'virtual_host': '/', 'username': 'u', 'password': 'p', 'timeout': 1,
    'heartbeat': 1, 'frame_max': 1, 'channel_max': 1, 'locale': None, 'ssl': False, 'ssl_options': {},
}  # fmt: skip


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_version_is_the_pinned_one() -> None:
    assert version('rabbitpy').startswith('3.0.')
    (pin,) = [line for line in requires('mikkoo') or [] if line.startswith('rabbitpy')]
    assert '<3.1' in pin and '>=3.0.2' in pin


def test_constructors_take_what_we_give_them() -> None:
    assert parameters(io.IO.__init__)[:7] == [
        'self', 'host', 'port', 'use_ssl', 'ssl_options', 'events', 'exceptions',
    ]  # fmt: skip
    assert parameters(channel0.Channel0.__init__) == ['self', 'args', 'events', 'exceptions_queue']
    assert parameters(heartbeat.Heartbeat.__init__) == ['self', 'io', 'channel0', 'interval']
    assert parameters(connection.Connection.__init__)[1] == 'url'


def test_methods_that_we_override_or_call() -> None:
    assert parameters(io.IO.write_frame) == ['self', 'channel', 'frame_value']
    assert parameters(io.IO.add_channel) == ['self', 'channel', 'read_queue']
    for name in ('run', 'stop', 'close'):
        assert parameters(getattr(io.IO, name)) == ['self']
    for name in ('bytes_written', 'bytes_received'):
        assert isinstance(inspect.getattr_static(io.IO, name), property)
    assert isinstance(inspect.getattr_static(channel0.Channel0, '_build_client_properties'), staticmethod)
    assert 'self._build_client_properties()' in inspect.getsource(channel0.Channel0._on_connection_start)
    assert parameters(channel0.Channel0.start) == ['self', 'io']
    assert parameters(events.Events.set) == ['self', 'event_id']
    assert parameters(connection.Connection._set_state) == ['self', 'value']
    assert 'self.connect()' in inspect.getsource(connection.Connection.__init__)
    assert 'self._io.bytes_written' in inspect.getsource(heartbeat.Heartbeat._maybe_send)
    assert 'self._channel0.send_heartbeat()' in inspect.getsource(heartbeat.Heartbeat._maybe_send)


def test_attributes_that_we_touch() -> None:
    errors: queue.Queue[Exception] = queue.Queue()
    shared = events.Events()
    transport = io.IO('h', 1, False, {}, shared, errors)  # type: ignore[typeddict-item]
    negotiator = channel0.Channel0(ARGUMENTS, shared, errors)  # type: ignore[arg-type]
    try:
        for name in ('_host', '_port', '_events', '_exceptions', '_stop_requested', '_channels'):
            assert hasattr(transport, name), name
        transport._write_trigger_w.send(b'.')
        assert transport._write_trigger_r.recv(2) == b'.'
        transport.add_channel(0, negotiator.pending_frames)
        assert transport._channels[0] is negotiator.pending_frames
        for name in ('maximum_frame_size', 'maximum_channels', 'heartbeat_interval', 'properties'):
            assert hasattr(negotiator, name), name
        assert heartbeat.Heartbeat(transport, negotiator, 10)._timer is None
    finally:
        transport.close()
    assert transport._write_trigger_r.fileno() == -1
    assert {'SOCKET_OPENED', 'CHANNEL0_OPENED'} <= set(dir(events))


def test_connection_has_the_attributes_that_we_replace() -> None:
    class Idle(connection.Connection):
        def connect(self) -> None:
            pass

    idle = Idle('amqp://localhost')
    for name in ('_args', '_channel0', '_io', '_events', '_exceptions', '_heartbeat'):
        assert hasattr(idle, name), name
    assert set(idle._args) == set(ARGUMENTS)


def test_our_own_attributes_hide_none_of_rabbitpys() -> None:
    transport = io.IO('h', 1, False, {}, events.Events(), queue.Queue())  # type: ignore[typeddict-item]
    try:
        ours = {
            'place', 'lock', 'lost', 'blocked', 'inboxes', '_stream', '_context', '_bell', '_deadline',
            '_limit', '_silence', '_heard', '_settled', '_rest', 'negotiated', 'transmit', 'open_inbox',
            'lose', '_serve', '_connect_stream', '_patience', '_read', '_receive', '_parse', '_deliver',
            '_write', '_wake', '_linger', 'leaving', '_soon', '_soon_at', 'call_soon', '_act',
            '_announce',
        }  # fmt: skip
        assert not [name for name in ours if hasattr(transport, name)]
    finally:
        transport.close()
