"""Add up JUnit reports: one line each and a closing line. Exits 1 if a test failed, or none ran."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def counts(path: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of one report."""
    suite = ElementTree.parse(path).getroot().find('testsuite')
    assert suite is not None, f'{path} is no JUnit report'
    total, failed, skipped = (
        int(suite.get('tests', 0)),
        int(suite.get('failures', 0)) + int(suite.get('errors', 0)),
        int(suite.get('skipped', 0)),
    )
    return total - failed - skipped, failed, skipped


def main(paths: list[str]) -> int:
    sums = (0, 0, 0)
    for path in map(Path, paths):
        found = counts(path)
        sums = (sums[0] + found[0], sums[1] + found[1], sums[2] + found[2])
        print(f'{path.stem:>12}  {found[0]:5} passed  {found[1]:3} failed  {found[2]:3} skipped')
    print(f'{sums[0]} passed, {sums[1]} failed, {sums[2]} skipped')
    return 1 if sums[1] or not sums[0] else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
