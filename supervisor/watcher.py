"""Changes of files to one wake-up, debounced: the home of watchdog.

A path is a chain: /etc/mikkoo.yml -> /srv/conf/..data/mikkoo.yml, ..data -> 2024_05, and every folder on the
way may be renamed, removed or made anew. So the folder of each entry of the chain is watched, before the
entry is looked at, and an event counts if it is about an entry. That sees a rename over the file, writing in
place, and the swap of a link wherever it is.

watchdog's threads only write one byte into a pipe. The loop waits until a change has settled: until it is
quiet for QUIET seconds, and, where a file is being written, until it is closed.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver
from watchdog.observers.polling import PollingObserver

QUIET = 0.1  # seconds without another change; then it has settled
MOST_NOISE = 0.5  # seconds: then it is looked at, quiet or not
WRITE_PATIENCE = 2.0  # seconds without another write for which a file may stay open: it may be half-written
POLL_INTERVAL = 0.5  # seconds, where there is no inotify
MOST_LINKS = 40  # in one path, as in the kernel

# Opening and reading are left out: the kernel does not even report them.
EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileDeletedEvent, FileClosedEvent, FileAttribEvent,
    DirCreatedEvent, DirMovedEvent, DirDeletedEvent,
]  # fmt: skip
NO_INOTIFY = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOSYS}
RETRY = 10.0  # seconds after which what could not be watched is tried again, and the files are looked at
WRITES, CLOSES, CHANGES = b'w', b'c', b'.'
# What watchdog 7 says, as an ERROR, of an event that comes while a watch is ended.
LATE = 'InotifyEmitter.queue_events() called when the thread is inactive'

logger = logging.getLogger('mikkoo.supervisor')


class Settling:
    """Pure: when a burst of changes is over."""

    def __init__(self) -> None:
        self._first = self._last = float('inf')
        self._open = False

    def noted(self, changes: bytes, now: float) -> None:
        """Changes have arrived, oldest first."""
        self._first = min(self._first, now)
        self._last = now
        for change in changes:
            if change in WRITES + CLOSES:
                self._open = change in WRITES

    def due(self) -> float:
        """When the burst is over if nothing more happens; infinity where there is none."""
        if self._open:
            return self._last + WRITE_PATIENCE
        return min(self._last + QUIET, self._first + MOST_NOISE)

    def over(self, now: float) -> bool:
        """Whether it is over; True once."""
        if now < self.due():
            return False
        self.__init__()  # type: ignore[misc]
        return True


class Watcher:
    """Watches paths. `fileno` is readable when something changed: then `take`, and ask `settled` at `due`."""

    def __init__(self, observer: Callable[[], BaseObserver] = InotifyObserver) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._settling = Settling()
        self._entries: set[str] = set()
        self._unreadable: set[str] = set()  # said already
        self._failures: set[str] = set()  # said already
        self._retry_at = float('inf')
        logging.getLogger('watchdog.observers.inotify').addFilter(_is_news)
        self._observer = self._started(observer)

    def fileno(self) -> int:
        return self._read

    def take(self, now: float) -> None:
        """Read the wake-ups."""
        try:
            self._settling.noted(os.read(self._read, 65_536), now)
        except BlockingIOError:
            pass

    def due(self) -> float:
        return min(self._settling.due(), self._retry_at)

    def settled(self, now: float) -> bool:
        """Whether it is time to look at the files and watch them again; True once for each burst."""
        if now >= self._retry_at:
            self._retry_at = float('inf')
            self._settling.noted(CHANGES, now)
        return self._settling.over(now)

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these paths and no others. Whoever reads the files afterwards misses no later change.

        Everything is watched anew each time: a folder that was removed and made again may even have its old
        inode number, but not its watch. What cannot be watched is logged, and due again in RETRY seconds.
        """
        wanted = list(paths)
        self._retry_at = float('inf')
        try:
            self._watch(wanted)
        except OSError as error:
            self._poll(error)
            self._watch(wanted)
        if self._retry_at == float('inf'):
            self._failures.clear()

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self, paths: list[str]) -> None:
        self._observer.unschedule_all()
        self._entries = set()
        handler = _Handler(self._heard)
        watched: set[str] = set()
        for path in paths:
            folder = '/'
            for entry in entries(path):
                self._entries.add(entry)
                folder = os.path.dirname(entry)
                if folder not in watched:
                    watched.add(folder)
                    self._schedule(handler, folder)
            if os.path.isdir(folder) and not os.access(folder, os.R_OK) and folder not in self._unreadable:
                self._unreadable.add(folder)
                logger.warning('%s may not be read: changes of %s are seen on a reload only', folder, path)

    def _schedule(self, handler: FileSystemEventHandler, folder: str) -> None:
        try:
            self._observer.schedule(handler, folder, event_filter=EVENTS)
        except (FileNotFoundError, NotADirectoryError):
            pass  # the watch on the folder above it sees it come
        except PermissionError:
            pass  # whoever may not read a folder may not watch it; said where it is a file's own
        except OSError as error:
            if error.errno in NO_INOTIFY and not isinstance(self._observer, PollingObserver):
                raise
            self._put_off(folder, error)

    def _put_off(self, folder: str, error: OSError) -> None:
        self._retry_at = time.monotonic() + RETRY
        failure = f'{folder} cannot be watched: {error.strerror or error}'
        if failure not in self._failures:
            self._failures.add(failure)
            logger.error('%s; it is tried again every %g s', failure, RETRY)

    def _started(self, make: Callable[[], BaseObserver]) -> BaseObserver:
        try:
            observer = make()
        except OSError as error:
            return self._polling(error)
        observer.start()
        return observer

    def _poll(self, error: OSError) -> None:
        self._observer.stop()
        self._observer.join()
        self._observer = self._polling(error)

    def _polling(self, error: OSError) -> BaseObserver:
        logger.warning('no inotify (%s): files are looked at every %g s', error.strerror, POLL_INTERVAL)
        observer = PollingObserver(timeout=POLL_INTERVAL)
        observer.start()
        return observer

    def _heard(self, event: FileSystemEvent) -> None:
        """In a thread of watchdog."""
        if not self._entries.intersection((event.src_path, event.dest_path)):
            return
        change = CHANGES
        if isinstance(event, FileClosedEvent):
            change = CLOSES
        elif isinstance(event, FileModifiedEvent) and not isinstance(self._observer, PollingObserver):
            change = WRITES
        try:
            os.write(self._write, change)
        except BlockingIOError:
            pass  # it is full of wake-ups already


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != LATE


class _Handler(FileSystemEventHandler):
    def __init__(self, heard: Callable[[FileSystemEvent], None]) -> None:
        self._heard = heard

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._heard(event)


def entries(path: str) -> Iterator[str]:
    """Each folder entry that leads to a file, links resolved one by one; yielded before it is looked at."""
    whole = path if path.startswith('/') else os.path.join(os.getcwd(), path)
    todo = whole.split('/')[::-1]
    here = '/'
    links = 0
    while todo:
        name = todo.pop()
        if name in ('', '.'):
            continue
        if name == '..':
            here = os.path.dirname(here)
            continue
        entry = os.path.join(here, name)
        yield entry
        try:
            target = os.readlink(entry)
        except OSError:
            here = entry  # not a link, or not there
            continue
        links += 1
        if links > MOST_LINKS:
            return
        here = '/' if target.startswith('/') else here
        todo.extend(target.split('/')[::-1])
