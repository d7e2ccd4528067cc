"""Brokers that talk nonsense at every step of a conversation: an error in time, no spin, nothing left."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import pamqp.frame
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pamqp import body, commands, header, heartbeat

from mikkoo.common import amqp
from mikkoo.common.amqp import Link
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings, WorkerSettings
from mikkoo.worker.event import Message
from mikkoo.worker.publisher import Publisher
from mikkoo.worker.routes import Routes
from tests.unit.amqp_peer import Conversation, Peer, Script
from tests.unit.test_amqp_link import nothing_is_left, pulse  # noqa: F401 - fixtures
from tests.unit.test_flights import event

PATIENCE = 0.8  # seconds that the client waits for an answer
LATEST = 15.0  # seconds until every conversation has ended, on a loaded machine
MESSAGES = 5
Connection, Channel, Basic, Exchange, Confirm = (
    commands.Connection, commands.Channel, commands.Basic, commands.Exchange, commands.Confirm,
)  # fmt: skip

# What a broker hears, and what it answers on which channel.
TALK: list[tuple[type[Any], Any, int]] = [
    (header.ProtocolHeader, Connection.Start(), 0),
    (Connection.StartOk, Connection.Tune(2047, 131_072, 0), 0),
    (Connection.Open, Connection.OpenOk(), 0),
    (Channel.Open, Channel.OpenOk(), 1),
    (Confirm.Select, Confirm.SelectOk(), 1),
    (Channel.Open, Channel.OpenOk(), 2),
    (Exchange.Declare, Exchange.DeclareOk(), 2),
    (Basic.Publish, Basic.Ack(MESSAGES, True), 1),
]
PUBLISHING = len(TALK) - 1


class Outcome(NamedTuple):
    error: BrokerError | None
    seconds: float
    lost: int  # messages that were taken, and are neither delivered nor failed nor left unjudged


def frame(value: Any, channel: int = 0) -> bytes:
    return pamqp.frame.marshal(value, channel)


def raw(kind: int, channel: int, payload: bytes, size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    return bytes((kind,)) + channel.to_bytes(2) + length.to_bytes(4) + payload + b'\xce'


def broker(step: int, words: bytes, answer: Any = None, *, hang_up: bool = False) -> Script:
    """Well-behaved up to `step`; there it says `words`, or another `answer`, and goes on only after that."""

    def script(talk: Conversation) -> None:
        for number, (kind, usual, channel) in enumerate(TALK):
            while not isinstance(heard := talk.hear(), kind):
                if heard is None:
                    return
            if number == step and answer is None:
                talk.sock.sendall(words)
                break
            talk.say(answer if number == step else usual, channel=channel)
        if not hang_up:
            talk.wait_for_end()

    return script


def work(port: int, patience: float = PATIENCE) -> Outcome:
    """What a worker does with a link, as far as it comes."""
    began = time.monotonic()
    with closing(Pulse()) as own_pulse:
        try:
            link = Link.open(
                BrokerSettings((('127.0.0.1', port),)), own_pulse, properties={}, timeout=patience
            )
        except BrokerError as error:
            assert f'127.0.0.1:{port}' in str(error)
            return Outcome(error, time.monotonic() - began, 0)
        try:
            error, lost = relay(link, own_pulse, patience)
        finally:
            link.dispose()
        return Outcome(error, time.monotonic() - began, lost)


def relay(link: Link, own_pulse: Pulse, patience: float) -> tuple[BrokerError | None, int]:
    try:
        settings = WorkerSettings('w', 'q', 'host=none', confirm_timeout=patience)
        publisher = Publisher(link, own_pulse, settings, Routes(1.0, lambda event: False))
    except BrokerError as error:
        return error, 0
    taken, failed = 0, None
    try:
        for number in range(1, MESSAGES + 1):
            taken = number
            publisher.publish(event(number), Message('e', 'k', {'message_id': str(number)}, b'body'))
        publisher.drain()
    except BrokerError as error:
        failed = error
    return failed, taken - publisher.delivered - len(publisher.take_failures()) - len(publisher.unjudged())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp, 'CALL_TIMEOUT', PATIENCE)


def converse(script: Script) -> Outcome:
    with Peer(script) as peer:
        return work(peer.port)


def deep_table(levels: int) -> bytes:
    value = b''
    for _ in range(levels):
        value = b'A' + len(value).to_bytes(4) + value
    return len(value + b'\1k').to_bytes(4) + b'\1k' + value


def start(table: bytes, mechanisms: bytes = b'PLAIN', locales: bytes = b'en_US') -> bytes:
    texts = b''.join(len(text).to_bytes(4) + text for text in (mechanisms, locales))
    return raw(1, 0, b'\0\x0a\0\x0a\0\x09' + table + texts)


RETURN = frame(Basic.Return(312, 'NO_ROUTE', 'e', 'k'), 1)
NOWHERE = frame(Basic.Ack(1), 7)
# No step can take these; each has to be told at once, with these words in the reason.
NEVER = {
    'http': (b'HTTP/1.1 400 Bad Request\r\n\r\n', 'not AMQP'),
    'tls': (b'\x15\x03\x03\0\2\2\x28', 'TLS'),
    'another amqp': (b'AMQP\0\1\0\0', 'another protocol'),
    'noise': (bytes(range(200, 256)), 'not AMQP'),
    'wrong end': (frame(Connection.Unblocked())[:-1] + b'\0', 'ends in 0x00'),
    'oversized': (raw(1, 0, b'', 131_073), 'over the 131072'),
    'largest size': (raw(3, 1, b'', 2**32 - 1), 'over the 131072'),
    'empty method': (raw(1, 0, b''), 'cannot be read'),
    'half a method index': (raw(1, 0, b'\0\x0a\0'), 'cannot be read'),
    'method without arguments': (raw(1, 0, b'\0\x0a\0\x1e'), 'cannot be read'),
    'unknown class': (raw(1, 0, b'\0\x63\0\x0a'), 'cannot be read'),
    'content on channel 0': (raw(3, 0, b'x'), 'content on channel 0'),
    'header on channel 0': (raw(2, 0, bytes(14)), 'content on channel 0'),
    'channel 65535': (frame(Basic.Ack(1), 65_535), 'channel 65535, which is not open'),
    'unknown channel': (NOWHERE, 'channel 7, which is not open'),
    'heartbeat on a channel': (raw(8, 9, b''), 'channel 9, which is not open'),
    'ack on channel 0': (frame(Basic.Ack(1)), 'xpected'),
    'deliver on channel 0': (frame(Basic.Deliver('t', 1, False, '', '')), 'xpected'),
    'secure': (frame(Connection.Secure('challenge')), 'xpected'),
    'close-ok unasked': (frame(Connection.CloseOk()), 'xpected'),
    'reason that is no text': (raw(1, 0, b'\0\x0a\0\x3c\2\xff\xfe'), 'cannot be read'),
    'close': (frame(Connection.Close(541, 'INTERNAL_ERROR', 0, 0)), '541 INTERNAL_ERROR'),
    'close with no code': (frame(Connection.Close(0, '', 0, 0)), 'broker'),
    'deep properties': (start(deep_table(5000)), 'cannot be read'),
    'wrong type in properties': (start(b'\0\0\0\4\1k?x'), 'cannot be read'),
    'table past its frame': (start(b'\xff\xff\xff\xff'), 'cannot be read'),
    'negative table': (start(b'\x80\0\0\0'), 'cannot be read'),
}
# On a channel that is open: the same.
ON_CHANNEL = {
    'heartbeat': (raw(8, 1, b''), 'type 8 on a channel'),
    'empty method': (raw(1, 1, b''), 'ends too early'),
    'unknown method': (raw(1, 1, b'\0\x3c\0\xff'), 'not expected'),
    'deliver': (frame(Basic.Deliver('t', 1, False, '', ''), 1), 'not expected'),
    'flow': (frame(Channel.Flow(False), 1), 'not expected'),
    'close-ok': (frame(Channel.CloseOk(), 1), 'not expected'),
    'qos-ok': (frame(Basic.QosOk(), 1), 'not expected'),
    'declare-ok': (frame(commands.Queue.DeclareOk('q', 1, 1), 1), 'not expected'),
    'header alone': (frame(header.ContentHeader(0, 1, Basic.Properties()), 1), 'header that was not'),
    'body alone': (frame(body.ContentBody(b'x'), 1), 'body that was not expected'),
    'return, then an ack': (RETURN + frame(Basic.Ack(1), 1), 'in the midst of a message'),
    'return, then a body': (RETURN + frame(body.ContentBody(b'x'), 1), 'body that was not'),
    'return of another class': (RETURN + raw(2, 1, b'\0\x0a' + bytes(12)), 'header of class 10'),
    'return with two headers': (RETURN + 2 * raw(2, 1, b'\0\x3c\0\0' + bytes(7) + b'\1\0\0'), 'header that'),
    'return with a long body': (RETURN + raw(2, 1, b'\0\x3c\0\0' + bytes(7) + b'\1\0\0') + raw(3, 1, b'ab'),
                                'body that was not'),
    'return with deep headers': (RETURN + raw(2, 1, b'\0\x3c' + bytes(10) + b'\x20\0' + deep_table(5000)),
                                 'nested too deeply'),
    'return cut short': (raw(1, 1, b'\0\x3c\0\x32\1') + raw(2, 1, b'\0\x3c' + bytes(12)), 'ends too early'),
    'channel close cut short': (raw(1, 1, b'\0\x14\0\x28\1'), 'ends too early'),
}  # fmt: skip
# Once messages are on their way.
IN_FLIGHT = {
    'ack of what was not sent': (frame(Basic.Ack(99), 1), 'message 99'),
    'multiple ack beyond': (frame(Basic.Ack(99, True), 1), 'message 99'),
    'nack of what was not sent': (frame(Basic.Nack(2**63 - 1), 1), f'message {2**63 - 1}'),
    'return of what was not sent': (
        RETURN + frame(header.ContentHeader(0, 0, Basic.Properties()), 1), 'not in flight'
    ),
}  # fmt: skip


def check_all(steps: range, words: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same words at each of the steps, all conversations at once."""
    with ThreadPoolExecutor(len(steps)) as pool:
        outcomes = list(pool.map(converse, [broker(step, words) for step in steps]))
    for step, outcome in zip(steps, outcomes, strict=True):
        assert outcome.error is not None, f'step {step}'
        assert reason in str(outcome.error), f'step {step}'
        assert outcome.seconds < LATEST
        assert outcome.lost == 0, f'step {step}'
    assert 'the I/O thread failed' not in caplog.text


@pytest.mark.parametrize(('words', 'reason'), NEVER.values(), ids=list(NEVER))
def test_nonsense_at_every_step(words: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    check_all(range(len(TALK)), words, reason, caplog)


@pytest.mark.parametrize(('words', 'reason'), ON_CHANNEL.values(), ids=list(ON_CHANNEL))
def test_nonsense_on_a_channel(words: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    check_all(range(4, len(TALK)), words, reason, caplog)


@pytest.mark.parametrize(('words', 'reason'), IN_FLIGHT.values(), ids=list(IN_FLIGHT))
def test_nonsense_about_messages(words: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    check_all(range(PUBLISHING, PUBLISHING + 1), words, reason, caplog)


@pytest.mark.parametrize(
    'words',
    [
        b'',
        frame(Connection.Close(320, 'CONNECTION_FORCED', 0, 0))[:-1],
        raw(1, 0, b'\0', 100)[:-1],
        frame(heartbeat.Heartbeat()) * 1000,
    ],
    ids=['silence', 'half a frame', 'the beginning of one', 'heartbeats'],
)
def test_what_leads_nowhere_ends_at_the_deadline(words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that says nothing of use, at each step; and nobody turns in circles meanwhile."""
    before = time.process_time()
    check_all(range(len(TALK)), words, 'no ', caplog)  # no answer within, no confirm for
    assert time.process_time() - before < len(TALK) * 0.3


@pytest.mark.parametrize(
    ('answer', 'error', 'reason'),
    [
        (Connection.Start(mechanisms='EXTERNAL AMQPLAIN'), BrokerRefused, 'no PLAIN login'),
        (Connection.Start(mechanisms=''), BrokerRefused, 'no PLAIN login'),
        (Connection.Start(mechanisms='PLAINER'), BrokerRefused, 'no PLAIN login'),
        (Connection.Start(mechanisms='CRAM PLAIN', locales=''), None, ''),
        (Connection.Start(locales='x' * 1000), None, ''),
        (Connection.Start(255, 255), None, ''),
        (Connection.Start(server_properties={'version': {'a': [None]}, 'x': 'y' * 100_000}), None, ''),
        (Connection.Start(server_properties={str(n): n for n in range(5000)}), None, ''),
        (Connection.Tune(0, 0, 0), None, ''),
        (Connection.Tune(65_535, 2**32 - 1, 65_535), None, ''),
        (Connection.Tune(2, 4096, 1), None, ''),
        (Connection.Tune(1, 131_072, 0), BrokerLost, 'all 1 channels are in use'),
        (Connection.Tune(2047, 4095, 0), BrokerRefused, 'frames of 4095 bytes'),
        (Connection.Tune(2047, 1, 0), BrokerRefused, 'frames of 1 bytes'),
        (Connection.OpenOk(), BrokerLost, 'Expected'),
    ],
)
def test_terms_of_the_broker(answer: Any, error: type[BrokerError] | None, reason: str) -> None:
    step = 1 if isinstance(answer, Connection.Tune) else 0
    outcome = converse(broker(step, b'', answer))
    assert type(outcome.error) is (error or type(None)), outcome
    assert reason in str(outcome.error)


numbers = st.integers(0, MESSAGES + 1)
returned = st.tuples(st.integers(0, MESSAGES), st.sampled_from([b'body', b'', b'x' * 5000])).map(
    lambda drawn: (
        RETURN
        + frame(header.ContentHeader(0, len(drawn[1]), Basic.Properties(message_id=str(drawn[0]))), 1)
        + b''.join(frame(body.ContentBody(part), 1) for part in (drawn[1][:7], drawn[1][7:]) if part)
    )
)
sayings = st.one_of(
    st.builds(lambda tag, multiple: frame(Basic.Ack(tag, multiple), 1), numbers, st.booleans()),
    st.builds(lambda tag, multiple: frame(Basic.Nack(tag, multiple), 1), numbers, st.booleans()),
    returned,
    st.sampled_from([
        frame(Channel.Close(404, 'NOT_FOUND', 60, 40), 1),
        frame(Channel.Close(404, 'NOT_FOUND', 40, 10), 2),
        frame(Connection.Blocked('memory')),
        frame(Connection.Unblocked()),
        frame(heartbeat.Heartbeat()),
        frame(Connection.Close(320, 'CONNECTION_FORCED', 0, 0)),
    ]),
)  # fmt: skip


@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(sayings, max_size=8), st.booleans())
def test_answers_to_messages_in_any_order(said: list[bytes], then_ack: bool) -> None:
    """Whatever is acknowledged, refused or returned, twice or not at all: no message is lost from sight."""
    words = b''.join(said) + (frame(Basic.Ack(MESSAGES, True), 1) if then_ack else b'')
    outcome = converse(broker(PUBLISHING, words, hang_up=True))
    assert outcome.lost == 0
    assert outcome.seconds < LATEST
