"""Configurations near valid ones, and such as are made to harm: our error alone, and that soon."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mikkoo.common import config
from mikkoo.common.errors import ConfigurationError
from tests.fuzz.configuration import check

DATA = Path(__file__).parent / 'data' / 'reference.yml'
LINES = DATA.read_text().splitlines()
WORKER = 'Application:\n  workers:\n    w:\n      '
LARGE = 400_000  # characters; a file may have 524,288 bytes


def nested_merges(width: int) -> str:
    """Each mapping merges the one before it `width` times; none has a key of its own."""
    lines = ['a0: &a0 {}']
    lines += [f'a{n}: &a{n} {{<<: [{", ".join([f"*a{n - 1}"] * width)}]}}' for n in range(1, 5)]
    return '\n'.join(lines)


def names(count: int, value: str, indent: int = 4) -> str:
    return ''.join(f'{" " * indent}n{number}: {value}\n' for number in range(count))


BOMBS = {
    'a word as database': f'{WORKER}postgres_url: {"a" * LARGE}',
    'words as database': f'{WORKER}postgres_url: {"a " * (LARGE // 2)}',
    'quotes in a database': f'{WORKER}postgres_url: "' + "a=' " * (LARGE // 4) + '"',
    'options of a database': f'{WORKER}postgres_url: "postgresql://h/d?{"a=b&" * (LARGE // 4)}"',
    'merged mappings': nested_merges(1000),
    'a long key above many': f'Application:\n  workers:\n    ? {"n" * 200_000}\n    :\n{names(3000, "1", 6)}',
    'aliases of a long text': f'a: &a "{"$" * 100_000}"\nb: [{"*a, " * 10_000}]',
    'aliases of a missing variable': f'a: &a "${{{"N" * 100_000}}}"\nb: [{"*a, " * 10_000}]',
    'aliases of a wrong tag': f'a: &a !x b\nb: [{"*a, " * 50_000}]',
    'names that an error lists': 'Logging:\n  formatters:\n'
    + names(4000, '{}')
    + '  handlers:\n'
    + names(2000, '{class: logging.NullHandler, formatter: f}'),
    'unknown keys': 'Application:\n' + names(3000, '1', 2),
    'one consumer of many workers': 'x: &w {postgres_url: a=b, queue: q}\nApplication:\n  workers:\n'
    + f'    {"n" * 255}: *w\n'
    + names(500, '*w'),
    **{
        f'many {piece!r}': piece * (20_000 // len(piece))
        for piece in [
            '[',
            '{',
            '- ',
            '? ',
            '{a: ',
            '[a: ',
            '!a ',
            '&a ',
            '*a ',
            '"',
            "'",
            '|\n',
            '%A\n',
            '\t',
        ]
    },
    **{
        f'many {piece!r} in a list': 'a: [' + piece * (10_000 // len(piece))
        for piece in ['a,', '[],', '{},', 'a: b,', '"a",', '\n', '&a a,']
    },
}


@pytest.mark.parametrize('text', BOMBS.values(), ids=list(BOMBS))
def test_bombs(text: str) -> None:
    assert check(f'{text}\nunknown: 1') > 0


def test_a_bomb_of_substitutions_does_not_keep_the_watcher(tmp_path: Path) -> None:
    path = tmp_path / 'm.yml'
    path.write_text('a: "' + '${file:' * (LARGE // 7))
    assert config.sources(path, {}) == {path}


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (DATA.read_text().encode('utf-16'), 'm.yml:1:1: is not UTF-8'),
        (DATA.read_text().encode('utf-16-le'), 'm.yml:1:2: not YAML: the character U+0000 may not'),
        (DATA.read_text().encode('utf-32'), 'm.yml:1:1: is not UTF-8'),
        (b'a: "\xed\xa0\x80"', 'm.yml:1:5: is not UTF-8'),
        (b'a: b\n\xff', 'm.yml:2:1: is not UTF-8'),
        (b'a: \0', 'm.yml:1:4: not YAML: the character U+0000 may not'),
        (b'\xef\xbb\xbf\xef\xbb\xbfa: b', 'm.yml:1:1: '),
        (b'', 'm.yml:1:1: found an empty file'),
    ],
)
def test_other_encodings(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / 'm.yml'
    path.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        config.load(path, {})
    assert str(caught.value).startswith(f'{tmp_path}/{reason}')


@pytest.mark.parametrize(
    ('line', 'place'),
    [
        (r'postgres_url: "dbname=\ud800"', 'm.yml:4:21: Application.workers.w.postgres_url'),
        (r'queue: "\udfff"', 'm.yml:4:14: Application.workers.w.queue'),
        (r'"\ud800": 1', 'm.yml:4:7: Application.workers.w'),
        (r'rabbitmq: {password: "\ud800"}', 'm.yml:4:28: Application.workers.w.rabbitmq.password'),
        ('{}\nDaemon: {pidfile: "/\\ud800"}', 'm.yml:4:19: Daemon.pidfile'),
        ('{}\nLogging: {handlers: {"\\ud800": {}}}', 'm.yml:4:22: Logging.handlers'),
    ],
)
def test_halves_of_surrogate_pairs_are_a_mistake_wherever_they_stand(line: str, place: str) -> None:
    text = (WORKER + line).replace('w:\n      {}', 'w: {}')
    with pytest.raises(ConfigurationError) as caught:
        config.parse(text, 'm.yml', {})
    assert any(str(mistake).startswith(place) for mistake in caught.value.mistakes)


fuzz = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
damages = st.one_of(
    st.tuples(st.just('drop'), st.integers(0, 40), st.just('')),
    st.tuples(st.just('twice'), st.integers(0, 40), st.just('')),
    st.tuples(st.just('indent'), st.integers(0, 40), st.sampled_from([' ', '  ', '\t', '\xa0'])),
    st.tuples(
        st.just('value'),
        st.integers(0, 40),
        st.sampled_from(
            ['', '[]', '{}', '~', '-1', '1e999', '"\\ud800"', '*a', '&a x', '!!int 1', '${X', '|', '>']
        )
        | st.text(max_size=8),
    ),
    st.tuples(st.just('line'), st.integers(0, 40), st.sampled_from(['<<: {}', '<<: 1', '? x', '---', '...'])),
    st.tuples(st.just('end'), st.integers(0, 40), st.sampled_from(['\r', '\x85', '\u2028', ' #', ':', '\0'])),
)


def damaged(damage: tuple[str, int, str]) -> str:
    kind, number, text = damage
    lines = list(LINES)
    number %= len(lines)
    line = lines[number]
    indent = line[: len(line) - len(line.lstrip())]
    lines[number : number + 1] = {
        'drop': [],
        'twice': [line, line],
        'indent': [text + line],
        'value': [f'{line.partition(":")[0]}: {text}'],
        'line': [line, indent + text],
        'end': [line + text],
    }[kind]
    return '\n'.join(lines)


@fuzz
@given(damages)
def test_one_damaged_line(damage: tuple[str, int, str]) -> None:
    check(damaged(damage))
