"""Every benchmark, one after the other, with the sizes of the goals: `python -m bench.goals --json FILE`.

Each in a process of its own with servers of its own; at the end all their goals, and one file of their
figures, which bench.plot reads. `--small` is for seeing that they work. It takes an hour or two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
WHOLE = {
    'relay': '--pin --unconfirmed --events 40000 --peer-events 10000',
    'memory': '',
    'latency': '',
    'fleet': '',
    'flat': '',
    'bodies': '',
    'queues': '',
    'audit': '',
}
SMALL = {
    'relay': '--no-peer --unconfirmed --events 500 --runs 1',
    'memory': '--events 2000 --bodies 20',
    'latency': '--seconds 1 --rate 100',
    'fleet': '--workers 2 --settle 0 --seconds 1 --reloaded 8 --runs 1',
    'flat': '--events 4000 --batch 1000 --step 2000',
    'bodies': '--sizes 1000 100000 --total 1000000 --events 300 --change-runs 1',
    'queues': '--counts 1 2 --events 300 --runs 1',
    'audit': '--events 500 --runs 1',
}


def run(name: str, options: Sequence[str], path: Path) -> dict[str, Any]:
    """What a benchmark wrote to this file. SystemExit if it fails."""
    print(f'\n== python -m bench.{name} {" ".join(options)}', flush=True)
    command = [sys.executable, '-m', f'bench.{name}', *options, '--json', str(path)]
    if code := subprocess.run(command, cwd=TOP).returncode:
        raise SystemExit(f'bench.{name} ended with {code}')
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description='Every benchmark, and the goals.')
    parser.add_argument('--small', action='store_true', help='only to see that they work')
    parser.add_argument('--only', nargs='+', choices=WHOLE, default=list(WHOLE), help='default: all')
    parser.add_argument('--peer-folder', help="relay's: the peer's environment, kept (default: made anew)")
    parser.add_argument('--json', type=Path, help='write all figures here')
    options = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix='mikkoo-bench-') as folder:
        for name in options.only:
            given = (SMALL if options.small else WHOLE)[name].split()
            if name == 'relay' and options.peer_folder:
                given += ['--peer-folder', options.peer_folder]
            figures[name] = run(name, given, Path(folder, f'{name}.json'))
            if options.json:
                options.json.write_text(json.dumps(figures, indent=1))
    print('\n== The goals')
    lines = [(goal['number'], goal['line']) for found in figures.values() for goal in found['goals']]
    for _, line in sorted(lines, key=lambda numbered: numbered[0]):
        print(line)


if __name__ == '__main__':
    main()
