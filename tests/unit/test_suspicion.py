from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mikkoo.worker.suspicion import LOSSES, QUICK, Loss, Suspicion

FRUITLESS = Loss(provoked=True, answered=False, probed=False, in_flight=1000, only=None)


def after_probe(event_id: int | None, answered: bool = False) -> Loss:
    return Loss(provoked=True, answered=answered, probed=True, in_flight=1, only=event_id)


def alone() -> Suspicion:
    suspicion = Suspicion()
    for _ in range(LOSSES):
        assert not suspicion.alone
        assert suspicion.lost(FRUITLESS) is None
    assert suspicion.alone
    return suspicion


def test_a_message_with_which_three_links_running_were_lost_is_convicted_and_the_rest_go_on_alone() -> None:
    suspicion = alone()
    assert [suspicion.lost(after_probe(7)) for _ in range(LOSSES)] == [None, None, 7]
    assert suspicion.alone and suspicion.knows(7) and not suspicion.knows(8)
    assert [suspicion.lost(after_probe(8)) for _ in range(LOSSES)] == [None, None, 8]
    suspicion.clear()
    assert not suspicion.alone and suspicion.knows(7)


def test_other_messages_were_answered_on_the_links_that_one_ended() -> None:
    suspicion = alone()
    assert [suspicion.lost(after_probe(7, answered=True)) for _ in range(LOSSES)] == [None, None, 7]


def test_a_link_lost_at_its_probe_is_an_outage_and_clears_all() -> None:
    suspicion = alone()
    for _ in range(LOSSES - 1):
        suspicion.lost(after_probe(7))
    assert suspicion.lost(FRUITLESS) is None
    assert not suspicion.alone
    for _ in range(LOSSES):
        assert suspicion.lost(FRUITLESS) is None
    assert suspicion.lost(after_probe(7)) is None, 'counted from the start again'


def test_losses_of_another_message_begin_a_new_count() -> None:
    suspicion = alone()
    assert [suspicion.lost(after_probe(n)) for n in (7, 7, 8, 7, 7, 8, 8, None, 8)] == [None] * 8 + [8]


def test_an_answer_between_begins_a_new_count() -> None:
    suspicion = Suspicion()
    for answered in (False, False, True, False, False):
        suspicion.lost(Loss(True, answered, False, 5, None))
    assert not suspicion.alone
    suspicion.lost(FRUITLESS)
    assert suspicion.alone


def test_what_no_message_provoked_or_can_have_provoked_changes_nothing() -> None:
    suspicion = Suspicion()
    for _ in range(10):
        suspicion.lost(Loss(provoked=False, answered=False, probed=False, in_flight=9, only=None))
        suspicion.lost(Loss(provoked=True, answered=False, probed=False, in_flight=0, only=None))
    assert not suspicion.alone
    suspicion = alone()
    for _ in range(10):
        suspicion.lost(Loss(provoked=False, answered=False, probed=True, in_flight=1, only=7))
    assert suspicion.alone and not suspicion.knows(7)


def test_links_are_made_quickly_at_first_and_seldom_when_nothing_is_answered_for_long() -> None:
    suspicion = alone()
    quick = [suspicion.quick]
    for number in range(QUICK):
        suspicion.lost(after_probe(number))
        quick.append(suspicion.quick)
    assert quick == [True] * (QUICK - LOSSES + 1) + [False] * LOSSES
    suspicion.lost(after_probe(1, answered=True))
    assert suspicion.quick
    suspicion.lost(FRUITLESS)
    assert not suspicion.quick, 'an outage'


def test_a_known_event_goes_alone_from_the_start() -> None:
    suspicion = Suspicion()
    suspicion.accuse()
    assert suspicion.alone
    assert [suspicion.lost(after_probe(7)) for _ in range(LOSSES)] == [None, None, 7]


losses = st.builds(
    Loss, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 3), st.none() | st.integers(1, 3)
)


@given(st.lists(losses, max_size=60))
def test_nothing_is_convicted_without_three_links_of_its_own_that_carried_a_probe(
    history: list[Loss],
) -> None:
    suspicion = Suspicion()
    for number, loss in enumerate(history):
        convicted = suspicion.lost(loss)
        if convicted is not None:
            its_own = [one for one in history[: number + 1] if one.provoked and one.probed]
            assert [one.only for one in its_own if one.only is not None][-LOSSES:] == [convicted] * LOSSES
            assert loss.probed and loss.provoked


@given(st.lists(losses, max_size=60))
def test_one_that_ends_every_link_is_convicted_within_six_losses_whatever_was_before(
    history: list[Loss],
) -> None:
    suspicion = Suspicion()
    for loss in history:
        suspicion.lost(loss)
    for _ in range(2 * LOSSES):
        loss = after_probe(99) if suspicion.alone else Loss(True, False, False, 1, 99)
        if suspicion.lost(loss) == 99:
            return
    raise AssertionError('not convicted')
