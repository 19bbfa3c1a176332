"""Continuous integration and the container do what the quick start says, no more and no less."""

import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
QUICK_START = (ROOT / 'docs' / 'quick_start.md').read_text()
JOBS = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())['jobs']


def documented():
    """Commands that set up a workspace of a distribution, build it and test it."""
    section = QUICK_START.split('## On a ROS 2 distribution')[1].split('\n## ')[0]
    set_up, *_, tests = re.findall(r'^```\n(.*?)^```', section, re.M | re.S)
    return (set_up + tests).replace('sudo ', '').splitlines()


def steps(job):
    return [line for step in job['steps'] for line in step.get('run', '').splitlines()]


def test_the_containers_run_the_commands_of_the_quick_start():
    job = JOBS['distribution']
    names = job['strategy']['matrix']['ros']
    assert job['container'] == 'ros:${{ matrix.ros }}'
    assert all(name.capitalize() in QUICK_START for name in names) and len(names) == 3
    run = [line.replace('${{ matrix.ros }}', 'jazzy') for line in steps(job)]
    assert set(run) == set(documented())
    # Every step is a shell of its own, and sources again; otherwise in the same order.
    order = [documented().index(line) for line in run if not line.startswith('source ')]
    assert order == sorted(order)


def test_the_wheels_are_those_that_set_up_knows():
    job = JOBS['wheels']
    wheels = {path.stem.removeprefix('requirements-') for path in (ROOT / 'tools').glob('*.txt')}
    assert set(job['strategy']['matrix']['ros']) == wheels - {'ros', 'dev'}
    packages, test = steps(job)
    named = re.search(r'apt-get install (g\+\+[^`]*)`', QUICK_START)[1].split()
    assert packages.split()[-len(named) :] == named
    assert test == 'make test ROS=${{ matrix.ros }}'


def test_the_image_has_the_packages_of_the_quick_start():
    def installed(lines):
        parts = [part for line in lines for part in line.split(' && ') if 'pip install' in part]
        words = [word for part in parts for word in shlex.split(part.split('pip install')[1])]
        return {word for word in words if re.match('[a-z]', word)}

    image = (ROOT / 'Dockerfile').read_text().replace('\\\n', ' ').splitlines()
    assert installed(image) == installed(documented()) and len(installed(image)) >= 5


def test_plugins_of_launch_are_off(pytestconfig):
    """Distributions have them; one test file skipped for want of a package would skip them all."""
    for name in ('launch_testing', 'launch_ros', 'launch_pytest'):
        assert pytestconfig.pluginmanager.is_blocked(name)
