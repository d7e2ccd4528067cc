"""Addresses of hosts, found in a thread: getaddrinfo has no deadline and may hang for many seconds."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

RESOLVE_EVERY = 300.0  # seconds: a host's address may change under us
RESOLVE_RETRY = 30.0  # seconds after a lookup that failed

Address = tuple[int, str, int]  # family, numeric host, port

logger = logging.getLogger(__name__)


class Lookup:
    """The address of a host for UDP. `purpose` says in the log what is missing while it has none."""

    def __init__(
        self, purpose: str, host: str, port: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._purpose, self._host, self._port, self._clock = purpose, host, port, clock
        self._address: Address | None = None
        self._error = ''
        self._warned = False
        self._thread: threading.Thread | None = None
        self._again_at = float('inf') if self._look(socket.AI_NUMERICHOST) else float('-inf')

    def current(self) -> Address | None:
        """The address last found, at once. Begins another lookup when it is time for one."""
        now = self._clock()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            self._again_at = now + (RESOLVE_RETRY if self._error else RESOLVE_EVERY)
            self._tell()
        if self._thread is None and now >= self._again_at:
            self._thread = threading.Thread(target=self._look, name=f'{self._purpose} address', daemon=True)
            self._thread.start()
        return self._address

    def _look(self, flags: int = 0) -> bool:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM, flags=flags)
        except (OSError, UnicodeError) as error:
            self._error = str(error)
            return False
        # IPv4 first: most statsd servers listen there alone, and a lost UDP packet tells nobody.
        families = [entry[0] for entry in found]
        entry = found[families.index(socket.AF_INET) if socket.AF_INET in families else 0]
        self._address, self._error = (entry[0], str(entry[4][0]), self._port), ''
        return True

    def _tell(self) -> None:
        if self._error and not self._warned:
            logger.warning(
                '%s host %r has no address (%s); will go on trying', self._purpose, self._host, self._error
            )
        elif self._warned and not self._error:
            logger.info('%s host %r has an address again', self._purpose, self._host)
        self._warned = bool(self._error)
