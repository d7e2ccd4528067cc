"""Everything that scripts/test runs, by tox, and a closing line that adds up all reports.

What needs no servers runs side by side; the real servers come after it, alone, as they have deadlines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.servers.process import raise_on_signals

TOP = Path(__file__).parents[1]
REPORTS = TOP / '.tox' / 'report'
TOGETHER = ('run-parallel', '--parallel-no-spinner', '-e', 'lint,type,py311,py312,py313,lowest')
ALONE = ('run', '-e', 'integration,faults,package')


def main() -> int:
    raise_on_signals()
    shutil.rmtree(REPORTS, ignore_errors=True)
    codes = [tox(*TOGETHER), tox(*ALONE)]
    good = closing_line()
    return 1 if any(codes) or not good else 0


def tox(*arguments: str) -> int:
    """Run tox and give its exit code. Ctrl-C reaches it by the terminal; other signals are passed on."""
    skip = 'false' if os.environ.get('CI') else 'true'  # interpreters that are missing
    command = [sys.executable, '-m', 'tox', *arguments, '--skip-missing-interpreters', skip]
    with subprocess.Popen(command, cwd=TOP) as running:
        try:
            return running.wait()
        except SystemExit:
            running.send_signal(signal.SIGINT)
            raise


def closing_line() -> bool:
    """Print what each report counts, and the sums; whether tests ran and none failed."""
    sums = (0, 0, 0)
    for path in sorted(REPORTS.glob('*.xml')):
        passed, failed, skipped = counts(path)
        print(f'{path.stem:>12} {passed:6} passed {failed:4} failed {skipped:4} skipped')
        sums = (sums[0] + passed, sums[1] + failed, sums[2] + skipped)
    print('{} passed, {} failed, {} skipped'.format(*sums), flush=True)
    return bool(sums[0]) and not sums[1]


def counts(path: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a JUnit report."""
    (suite,) = ElementTree.parse(path).getroot().iter('testsuite')
    total, failures, errors, skipped = (
        int(suite.attrib[key]) for key in ('tests', 'failures', 'errors', 'skipped')
    )
    return total - failures - errors - skipped, failures + errors, skipped


if __name__ == '__main__':
    sys.exit(main())
