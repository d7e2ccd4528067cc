from mikkoo.worker.exchanges import Exchanges, Refusal

MISSING = Refusal(404, "NOT_FOUND - no exchange 'x' in vhost '/'")


class Broker:
    def __init__(self) -> None:
        self.missing = {'x'}
        self.asked: list[str] = []
        self.now = 0.0

    def look_up(self, exchange: str) -> Refusal | None:
        self.asked.append(exchange)
        return MISSING if exchange in self.missing else None


def test_an_exchange_is_looked_up_once() -> None:
    broker = Broker()
    exchanges = Exchanges(broker.look_up, 10, lambda: broker.now)
    assert [exchanges.refusal('good') for _ in range(3)] == [None, None, None]
    assert exchanges.known('good') and broker.asked == ['good']


def test_the_default_exchange_needs_no_look_up() -> None:
    broker = Broker()
    assert Exchanges(broker.look_up, 10).refusal('') is None
    assert broker.asked == []


def test_a_missing_exchange_is_held_and_asked_for_again_later() -> None:
    broker = Broker()
    exchanges = Exchanges(broker.look_up, 10, lambda: broker.now)
    assert exchanges.refusal('x') == MISSING
    broker.missing.clear()
    broker.now = 9.9
    assert exchanges.refusal('x') == MISSING and broker.asked == ['x']
    broker.now = 10.0
    assert exchanges.refusal('x') is None and exchanges.known('x')


def test_after_a_closed_channel_all_is_asked_again_but_what_is_held_stays_held() -> None:
    broker = Broker()
    exchanges = Exchanges(broker.look_up, 10, lambda: broker.now)
    exchanges.refusal('good')
    exchanges.hold('bad', Refusal(403, 'no'))
    exchanges.forget()
    assert exchanges.refusal('bad') == Refusal(403, 'no')
    exchanges.refusal('good')
    assert broker.asked == ['good', 'good']


def test_only_some_refusals_tell_of_the_whole_exchange() -> None:
    concerns = Exchanges.concerns_exchange
    assert concerns(MISSING)
    assert concerns(Refusal(403, "ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'"))
    assert not concerns(
        Refusal(403, "ACCESS_REFUSED - access to topic 'k' in exchange 'x' refused for user 'u'")
    )
    assert not concerns(Refusal(406, 'PRECONDITION_FAILED - user_id property set to'))


def test_what_is_held_no_more_is_forgotten_though_every_event_names_another() -> None:
    broker = Broker()
    exchanges = Exchanges(broker.look_up, 10, lambda: broker.now)
    for number in range(1000):
        broker.now = float(number)
        exchanges.hold(f'x{number}', MISSING)
    assert len(exchanges._held) <= 11
