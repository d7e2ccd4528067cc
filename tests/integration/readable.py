"""A Python that every user of the machine may run.

A daemon that drops root, and a command by another user, must still read Python and Mikkoo; a checkout or an
interpreter under /root is nobody's else. So where it has to be, all of it is copied to a folder open to all.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

SCRIPT = Path(sys.executable).with_name('mikkood')
ROOMS = ('common', 'worker', 'supervisor')
# What mikkood does not need, and takes long to copy.
IGNORED = (
    '__editable__*', 'test', 'tests', 'idlelib', 'tkinter', 'ensurepip', 'lib2to3', 'config-*',
    'site-packages', 'pip', 'mypy*', 'ruff*', 'hypothesis*', 'cryptography*', 'setuptools*', 'virtualenv*',
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A mikkood to run, and the environment that it needs."""

    script: Path
    environment: dict[str, str] = field(default_factory=dict)


def program(user: str, folder: Path) -> Program:
    """A mikkood that `user` may run: the one of these tests, or else a copy in `folder`."""
    if user == pwd.getpwuid(os.geteuid()).pw_name:
        return Program(SCRIPT)
    try:
        command = [sys.executable, '-c', 'import mikkoo.supervisor.loop, mikkoo.worker.main']
        subprocess.run(command, user=user, extra_groups=[], capture_output=True, cwd='/', check=True)
    except (PermissionError, subprocess.CalledProcessError):
        return _copy(folder)
    return Program(SCRIPT)


def _copy(folder: Path) -> Program:
    release = f'python{sys.version_info.major}.{sys.version_info.minor}'
    library, packages = folder / 'lib' / release, folder / 'lib' / release / 'site-packages'
    ignored = shutil.ignore_patterns(*IGNORED)
    shutil.copytree(sysconfig.get_path('stdlib'), library, ignore=ignored)
    for source in {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}:
        shutil.copytree(source, packages, ignore=ignored, dirs_exist_ok=True)
    for room in ROOMS:
        [source] = import_module(f'mikkoo.{room}').__path__
        shutil.copytree(source, packages / 'mikkoo' / room, ignore=ignored, dirs_exist_ok=True)
    for shared in Path(sysconfig.get_config_var('LIBDIR')).glob('libpython*.so*'):
        shutil.copy2(shared, folder / 'lib')
    binary = folder / 'bin' / release
    binary.parent.mkdir()
    shutil.copy2(Path(sys.executable).resolve(), binary)
    # Else the system's libpython of the same release would be taken for one that cannot be read.
    return Program(_script(binary), {'LD_LIBRARY_PATH': str(folder / 'lib')})


def _script(binary: Path) -> Path:
    """A console script as pip writes it."""
    script = binary.with_name('mikkood')
    script.write_text(
        f'#!{binary}\nimport sys\nfrom mikkoo.supervisor.cli import main\n'
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(0o755)
    return script
