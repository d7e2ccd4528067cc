"""The hosts of a libpq url, in the order in which they are tried."""

from __future__ import annotations

import pytest

from mikkoo.common.errors import DatabaseError
from mikkoo.common.postgres import _targets


def places(url: str) -> list[tuple[str | None, str | None]]:
    return [(target.get('host'), target.get('port')) for target in _targets(url)]


@pytest.mark.parametrize(
    ('url', 'expected'),
    [
        ('postgresql:///db', [(None, None)]),
        ('postgresql://u@h/db', [('h', None)]),
        ('host=h port=5433 dbname=db', [('h', '5433')]),
        ('postgresql://a:1,b:2/db', [('a', '1'), ('b', '2')]),
        ('host=a,b,c port=7 dbname=db', [('a', '7'), ('b', '7'), ('c', '7')]),
        ('host=a,b hostaddr=10.0.0.1,10.0.0.2 dbname=db', [('a', None), ('b', None)]),
        ('hostaddr=10.0.0.1,10.0.0.2 port=1,2 dbname=db', [(None, '1'), (None, '2')]),
    ],
)
def test_each_host_has_its_port(url: str, expected: list[tuple[str | None, str | None]]) -> None:
    assert places(url) == expected


def test_the_rest_of_a_url_goes_to_every_host() -> None:
    targets = _targets(
        'postgresql://u:p%40w@a,b/db?target_session_attrs=read-write&hostaddr=10.0.0.1,10.0.0.2'
    )
    assert [target.pop('host') for target in targets] == ['a', 'b']
    assert [target.pop('hostaddr') for target in targets] == ['10.0.0.1', '10.0.0.2']
    rest = {'user': 'u', 'password': 'p@w', 'dbname': 'db', 'target_session_attrs': 'read-write'}
    assert [{key: target[key] for key in rest} for target in targets] == [rest, rest]


def test_a_preference_for_standbys_is_two_rounds() -> None:
    targets = _targets('postgresql://a,b/db?target_session_attrs=prefer-standby')
    assert [(target['host'], target['target_session_attrs']) for target in targets] == [
        ('a', 'standby'),
        ('b', 'standby'),
        ('a', 'any'),
        ('b', 'any'),
    ]
    [alone] = _targets('postgresql://a/db?target_session_attrs=prefer-standby')
    assert alone['target_session_attrs'] == 'prefer-standby'  # libpq knows what to do


def test_balanced_hosts_are_all_there() -> None:
    hosts = [place[0] for place in places('postgresql://a,b,c/db?load_balance_hosts=random')]
    assert sorted(str(host) for host in hosts) == ['a', 'b', 'c']


@pytest.mark.parametrize('url', ['host=a,b,c port=1,2', 'host=a,b hostaddr=10.0.0.1'])
def test_lists_of_different_lengths_are_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match='hosts'):
        _targets(url)


def test_what_is_no_url_is_refused_without_its_words() -> None:
    with pytest.raises(DatabaseError, match='not a libpq url') as caught:
        _targets('postgresql//u:secret@h/db')
    assert 'secret' not in str(caught.value)
    assert caught.value.__cause__ is None
