"""Packaging: the folders at the top level install as ``mikkoo.*``."""

from setuptools import setup

ROOMS = ('common', 'worker', 'supervisor', 'etc')

setup(
    packages=[f'mikkoo.{room}' for room in ROOMS],
    package_dir={f'mikkoo.{room}': room for room in ROOMS},
    package_data={'mikkoo.etc': ['*.yml'], **{f'mikkoo.{room}': ['py.typed'] for room in ROOMS}},
)
