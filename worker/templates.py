"""Translates fast what comes again: events of one kind differ in little else than their body.

A producer's events mostly share routing key, exchange, content type, properties and headers. Of such a set of
texts the plain Translator and encoder work out the encoded properties once; the Template made of them has
gaps for what the relay itself adds (id, time, sequence, txid), and to fill those costs half of what it costs
to translate and encode (bench/translate.py). The plain way makes every Template, and one is used only after
it has given, for another event than the one that it was made from, the very bytes that the plain way gives.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from operator import itemgetter
from struct import Struct
from typing import Any

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Encoded, Event, Message
from mikkoo.worker.frames import encode_properties
from mikkoo.worker.translate import EPOCH, Marks, Translator

MADE_AT = 4  # which event of a kind makes the template: that costs what it saves at some ten others
MOST_TEMPLATES = 1000
MOST_CHARACTERS = 1_000_000  # of the texts of all that have a template, as they are kept
LONGEST_TEXTS = 4096  # characters of the texts of an event that get a template
RENEWED_AFTER = 20_000  # events without a template, after which as many templates as may be make room
LARGEST_SHORT_TXID = 0x7FFFFFFF  # AMQP has two sizes of integers

Values = tuple[bytes, ...]  # what one message alone has: id, time as text, seconds, sequence number, txid
Texts = tuple[str | bool | None, ...]  # what the messages of one kind share, and the size of their txid

_random = random.SystemRandom()
_eight_bytes = Struct('>q').pack
_long_txid, _short_txid = Struct('>6sq').pack, Struct('>6si').pack


class Template:
    """What the messages of one kind share, made of one of them and the Values that were put into it.

    Raises EventError where that cannot be encoded, ValueError where it holds too few of the values.
    """

    __slots__ = ('_flags', '_form', '_order', 'exchange', 'routing_key')

    def __init__(self, message: Message, values: Values) -> None:
        self.exchange, self.routing_key = message.exchange, message.routing_key
        self._flags, encoded = encode_properties(message.properties)
        gaps = _gaps(encoded, values)
        if len(gaps) < 2:
            raise ValueError('nearly all of it is given by the event')
        pieces, begin = [], 0
        for start, number in gaps:
            pieces.append(encoded[begin:start].replace(b'%', b'%%'))
            begin = start + len(values[number])
        self._form = b'%b'.join((*pieces, encoded[begin:].replace(b'%', b'%%')))
        self._order: Callable[[Values], Any] = itemgetter(*(number for _, number in gaps))

    def fill(self, values: Values) -> Encoded:
        """The properties of another message."""
        return Encoded(self._flags, self._form % self._order(values))


class TemplateTranslator:
    """Does what `plain` does; the properties are Encoded where the texts of an event have come before."""

    def __init__(self, plain: Translator) -> None:
        self._plain = plain
        self._templates: dict[Texts, Template] = {}
        self._seen: dict[int, int] = {}  # how often texts came, by their hash
        self._characters = 0  # of the texts of all templates
        self._missed = 0

    def __call__(self, event: Event) -> Message:
        _, _, txid, _, key, data, extra1, extra2, extra3, extra4, _ = event
        marks = self._plain.mark(event)
        texts = (key, extra1, extra2, extra3, extra4, txid > LARGEST_SHORT_TXID)
        template = self._templates.get(texts)
        if template is None:
            return self._compose(event, marks, texts)
        properties = template.fill(_values(marks, txid))
        return Message(template.exchange, template.routing_key, properties, self._plain.body(data))

    def _compose(self, event: Event, marks: Marks, texts: Texts) -> Message:
        warned = self._plain.warned
        message = self._plain.compose(event, marks)
        self._make_room()
        number = hash(texts)
        times = self._seen[number] = self._seen.get(number, 0) + 1
        # Tried once: there may be nothing to gain. And of every event that is warned of, all are.
        if times == MADE_AT and not self._full and self._plain.warned == warned:
            self._try(event, marks, texts, message)
        return message

    @property
    def _full(self) -> bool:
        return len(self._templates) >= MOST_TEMPLATES or self._characters >= MOST_CHARACTERS

    def _make_room(self) -> None:
        self._missed += 1
        if self._missed > RENEWED_AFTER:
            self._missed = 0
            self._seen.clear()
            if self._full:
                self._templates.clear()
                self._characters = 0

    def _try(self, event: Event, marks: Marks, texts: Texts, message: Message) -> None:
        """Keep a template that is made of a stranger and gives what the event itself has become."""
        shared = (event.type, event.extra1, event.extra2, event.extra3, event.extra4)
        size = sum(len(text or '') for text in shared)
        if size > LONGEST_TEXTS:
            return
        stranger = _stranger(event)
        theirs = self._plain.mark(stranger)
        try:
            template = Template(self._plain.compose(stranger, theirs), _values(theirs, stranger.txid))
            expected = encode_properties(message.properties)
        except (EventError, ValueError):
            return
        found = template.fill(_values(marks, event.txid))
        if (found.flags, found.encoded) == expected:
            self._templates[texts] = template
            self._characters += size


def _gaps(encoded: bytes, values: Values) -> list[tuple[int, int]]:
    """Where the values are, in order: the offset, and which of them."""
    found = []
    for number, value in enumerate(values):
        start = encoded.find(value)
        while start >= 0:
            found.append((start, number))
            start = encoded.find(value, start + len(value))
    return sorted(found)


def _values(marks: Marks, txid: int) -> Values:
    event_id, seconds, moment, sequence = marks
    return (
        event_id.encode(),
        moment.encode(),
        _eight_bytes(seconds),
        _eight_bytes(sequence),
        _long_txid(b'\4txidl', txid) if txid > LARGEST_SHORT_TXID else _short_txid(b'\4txidI', txid),
    )


def _stranger(event: Event) -> Event:
    """An event of the same texts, with everything else so random that no text holds it."""
    time = EPOCH + timedelta(microseconds=_random.randrange(2**47, 2**57))
    size = LARGEST_SHORT_TXID if event.txid <= LARGEST_SHORT_TXID else 2**63 - 1
    return event._replace(id=_random.getrandbits(62), time=time, txid=_random.randrange(size // 2, size))
