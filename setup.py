"""Packaging: the folders at the top level install as ``mikkoo.*``, the shipped data files beside them."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ('common', 'worker', 'connector', 'auditor', 'supervisor')
DATA = {  # where it lies here, and where under mikkoo/ when installed
    'mikkoo.sql': 'mikkoo.sql',  # both are read by common/resources.py
    'etc/mikkoo.yml': 'etc/mikkoo.yml',
    'common/py.typed': 'py.typed',  # `mypy -p mikkoo` looks for it at the top too
}


class BuildWithData(build_py):
    """Also copies the data files, which lie in no package; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._data().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._data().values()]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._data()]

    def _data(self) -> dict[str, str]:
        return {source: str(Path(self.build_lib, 'mikkoo', target)) for source, target in DATA.items()}


setup(
    packages=[f'mikkoo.{room}' for room in ROOMS],
    package_dir={f'mikkoo.{room}': room for room in ROOMS},
    package_data={f'mikkoo.{room}': ['py.typed'] for room in ROOMS},
    cmdclass={'build_py': BuildWithData},
)
