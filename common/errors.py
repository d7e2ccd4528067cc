"""One tree of exceptions, and the exit codes of every Mikkoo process.

Exit codes follow sysexits.h where it has a name for the case; `mikkood status` follows LSB.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `mikkood` and of its children."""

    OK = 0
    FAILURE = 1  # the command was understood and failed; the reason is on standard error
    DEAD = 1  # `status`: LSB "program is dead and its pidfile exists"
    USAGE = 2  # argparse
    NOT_RUNNING = 3  # `status`: LSB "program is not running"
    UNKNOWN = 4  # `status`: LSB "program or service status is unknown"
    NO_DAEMON = 7  # LSB "program is not running": reload, restart NAME
    UNAVAILABLE = 69  # `audit`: a database cannot be reached, or does not let us look
    SOFTWARE = 70  # a bug: an exception nobody expected
    NOPERM = 77  # may not: user, pidfile, socket
    CONFIG = 78  # the configuration file is wrong


class MikkooError(Exception):
    """Base of all that Mikkoo raises on purpose."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a configuration file. line and column count from 1; 0 where unknown."""

    file: str
    line: int
    column: int
    key: str  # dotted path, as 'Application.workers.test.confirm'
    found: str
    allowed: str

    def __str__(self) -> str:
        place = f'{self.file}:{self.line}:{self.column}' if self.line else self.file
        key = f' {self.key}:' if self.key else ''
        found = f' found {self.found};' if self.found else ''
        return f'{place}:{key}{found} {self.allowed}'


class ConfigurationError(MikkooError):
    """The configuration cannot be used; holds every mistake found, in file order."""

    def __init__(self, *mistakes: Mistake) -> None:
        super().__init__('\n'.join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


class Outage(MikkooError):
    """A server is gone or refuses us: nobody's event failed; back off and try again."""


class DatabaseError(Outage):
    """PostgreSQL refused a statement or a login; `sqlstate` is its code, '' where it gave none."""

    def __init__(self, message: str, sqlstate: str = '') -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseLost(DatabaseError):
    """The connection to PostgreSQL is gone, or could not be made."""


class Fenced(DatabaseError):
    """Another process owns, or finished, our batch: nothing of it was settled."""


class BrokerError(Outage):
    """RabbitMQ could not be used."""


class BrokerLost(BrokerError):
    """The link to RabbitMQ is gone, stalled, or could not be made.

    `provoked`: an established link was ended by the other side, or for what it sent: what we sent may be why.
    False for silence, deadlines, our own end of it, and an operator's (connection-forced).
    """

    def __init__(self, message: str, *, provoked: bool = False) -> None:
        super().__init__(message)
        self.provoked = provoked


class BrokerRefused(BrokerError):
    """RabbitMQ answered and said no: credentials, virtual host, TLS. `code` is its reply code or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class EventError(MikkooError):
    """An event cannot become a message. `field` names the PgQ column or AMQP property.

    `permanent`: no retry can cure it (text that is not JSON); False where the broker decides, and may change
    its mind.
    """

    def __init__(self, field: str, reason: str, *, permanent: bool = True) -> None:
        super().__init__(f'{field}: {reason}')
        self.field = field
        self.reason = reason
        self.permanent = permanent


class Stopping(MikkooError):
    """The process was asked to stop; raised out of a wait."""
