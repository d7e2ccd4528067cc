"""Names and numbers: sequence, event ids, the host's name."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.worker.identity import COUNTER_BITS, NAMESPACE, NODE_BITS, Sequence, event_ids, origin


@given(
    st.text(st.characters(exclude_categories=['Cs'])),
    st.text(st.characters(exclude_categories=['Cs'])),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**58),
)
def test_event_id_is_the_uuid5_of_its_four_values(database: str, queue: str, number: int, time: int) -> None:
    expected = uuid.uuid5(NAMESPACE, f'{database}\n{queue}\n{number}\n{time}')

    assert event_ids(database, queue)(number, time) == str(expected)


def test_event_ids_never_change() -> None:
    assert event_ids('shop', 'test')(4, 1487830634471682) == '369cf480-1723-50bb-8fd5-f60c9a8b1ff6'


def test_sequence_sorts_by_time_and_fits_63_bits() -> None:
    milliseconds = [1, 2, 2, 3, 4_102_444_800_000]  # the last one: the year 2100
    clock = iter([time * 1_000_000 for time in milliseconds])
    sequence = Sequence(node=2**10 - 1, clock=lambda: next(clock))

    numbers = [sequence() for _ in milliseconds]

    assert numbers == sorted(set(numbers))
    assert all(0 < number < 2**63 for number in numbers)
    assert [number >> NODE_BITS + COUNTER_BITS for number in numbers] == milliseconds
    assert (
        Sequence(node=0, clock=lambda: 2_000_000)() < numbers[3] < Sequence(node=0, clock=lambda: 4_000_000)()
    )


def test_sequence_never_repeats_or_falls_when_the_clock_stands_or_steps_back() -> None:
    times = iter([5_000_000] * 5000 + [1_000_000] * 5000)
    sequence = Sequence(node=1, clock=lambda: next(times))

    numbers = [sequence() for _ in range(10_000)]

    assert all(first < second for first, second in pairwise(numbers))


def test_sequences_of_two_nodes_differ() -> None:
    first, second = (Sequence(node=node, clock=lambda: 5_000_000) for node in (1, 2))

    assert {first() for _ in range(100)}.isdisjoint({second() for _ in range(100)})


def test_sequence_of_the_present_grows() -> None:
    sequence = Sequence()

    assert 2**61 < sequence() < sequence() < 2**63


def test_origin_is_the_full_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, 'getfqdn', lambda: 'mikkoo.domain.com')

    assert origin() == 'mikkoo.domain.com'


@pytest.mark.parametrize('name', ['localhost', 'localhost.localdomain'])
def test_origin_is_never_localhost(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(socket, 'getfqdn', lambda: name)
    monkeypatch.setattr(socket, 'gethostname', lambda: 'mikkoo')

    assert origin() == 'mikkoo'


def test_origin_does_not_wait_for_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, 'getfqdn', lambda: str(release.wait(60)))
    monkeypatch.setattr(socket, 'gethostname', lambda: 'mikkoo')
    started = time.monotonic()

    assert origin(timeout=0.05) == 'mikkoo'
    assert time.monotonic() - started < 5
    release.set()
