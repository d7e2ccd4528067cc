"""Frames of any content, in any order, cut anywhere: delivered, or a FrameError or BrokerError."""

from __future__ import annotations

import pamqp.frame
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mikkoo.common.amqp_frames import METHOD
from tests.fuzz.frames import ENVELOPED, KINDS, SEEDS, SETTLED, check, envelop, run

fuzz = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
METHODS = sorted(index.to_bytes(4) for index in pamqp.commands.INDEX_MAPPING)
flags = st.integers(0, 255)
arguments = st.lists(
    st.sampled_from([b'\0', b'\1', b'\xff', b'\0\0\0\0', b'\0\0\0\x01', b'\x05hello', b'\x7f\xff\xff\xff'])
    | st.binary(max_size=9),
    max_size=8,
).map(b''.join)
payloads = st.builds(bytes.__add__, st.sampled_from(METHODS), arguments) | st.binary(max_size=40)
tables = st.recursive(
    st.builds(bytes.__add__, st.sampled_from([b'S', b't', b'D', b'T', b'x', b'?', b'l', b'V']), arguments),
    lambda inner: st.builds(
        lambda kind, parts, wrong: (
            kind
            + max(0, sum(map(len, parts)) + wrong).to_bytes(4)
            + b''.join(b'\1k' + part for part in parts)
        ),
        st.sampled_from([b'F', b'A']),
        st.lists(inner, max_size=3),
        st.sampled_from([0, 0, 1, -1, 2**31]),
    ),
    max_leaves=8,
)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return bytes((kind,)) + channel.to_bytes(2) + len(payload).to_bytes(4) + payload + b'\xce'


whole = st.lists(
    st.builds(frame, st.sampled_from([METHOD, METHOD, *KINDS]), st.sampled_from([0, 1, 1, 2]), payloads),
    max_size=5,
).map(b''.join)


@fuzz
@given(whole, flags)
def test_frames_of_any_content(data: bytes, drawn: int) -> None:
    check(data, drawn)


@fuzz
@given(tables, st.booleans())
@example(b'D\xff\xff\xff\xff\xff', False)
@example(b'F\xff\xff\xff\xff', False)
def test_tables_of_any_content(value: bytes, returned: bool) -> None:
    """In the properties of the broker, and in the headers of a returned message."""
    table = (len(value) + 2).to_bytes(4) + b'\1k' + value
    if returned:
        start = frame(METHOD, 1, b'\0\x3c\0\x32' + bytes(5))
        check(start + frame(2, 1, b'\0\x3c' + bytes(10) + b'\x20\0' + table))
    else:
        check(frame(METHOD, 0, b'\0\x0a\0\x0a\0\x09' + table + b'\0\0\0\5PLAIN' + bytes(4)), 0)


@fuzz
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_talks(seed: bytes, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(begin, min(begin + 6, len(seed))))
    run(seed[:begin] + data.draw(st.binary(max_size=6)) + seed[end:])


@pytest.mark.parametrize('seed', SEEDS)
def test_the_seeds_are_whole_frames(seed: bytes) -> None:
    frames = envelop(seed[1:]) if seed[0] & ENVELOPED else seed[1:]
    while frames:
        used, _, value = pamqp.frame.unmarshal(frames)
        assert value is not None
        frames = frames[used:]


def test_noise_that_looks_like_one_long_frame_is_read_soon() -> None:
    check(frame(METHOD, 0, b'\0\x0a\0\x0a\0\x09' + (130_000).to_bytes(4) + b'\1kV' * 43_000), SETTLED)
