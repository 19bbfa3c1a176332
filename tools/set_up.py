"""Set everything up: a virtual environment with torch and ROS 2 from wheels, then colcon build.

Runs on the system's Python with the standard library alone. What a step depends on is hashed into
a stamp file, so a step whose inputs have not changed is skipped.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
VENV_STAMP = VENV / 'set_up.json'
BUILD_STAMP = ROOT / 'build' / 'set_up.json'
ROS_DISTROS = ['kilted', 'jazzy']
# The ROS 2 wheels exist for these.
VERSIONS = ['3.10', '3.11', '3.12', '3.13']
NEEDED_GIB = 10


class SetUpError(Exception):
    """Something this machine lacks or that went wrong, with what to do about it."""


def main():
    """Run the wanted steps; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'step', nargs='?', choices=['venv', 'build'], default='build', help='how far to go'
    )
    parser.add_argument('--python', help='which Python the virtual environment is made with')
    parser.add_argument(
        '--ros',
        choices=ROS_DISTROS,
        help=f'whose wheels it has (default: those it has already, or {ROS_DISTROS[0]})',
    )
    arguments = parser.parse_args()
    try:
        with one_at_a_time():
            venv_key = set_up_venv(arguments.python, arguments.ros)
            if arguments.step == 'build':
                set_up_build(venv_key, read_stamp(VENV_STAMP)['ros'])
    except SetUpError as error:
        print(f'set-up: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextlib.contextmanager
def one_at_a_time():
    """Let two set-ups in one checkout wait for each other."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('waiting for another set-up in this folder')
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- virtual environment


def set_up_venv(wanted, wanted_ros):
    """Make .venv/ and install into it, where needed; returns the key of its content."""
    stamp = read_stamp(VENV_STAMP)
    # A virtual environment names its own folder in its scripts: moved, it has to be made anew.
    usable = has_pip() and stamp.get('root', str(ROOT)) == str(ROOT)
    # Wheels of two distributions must not mix.
    ros = wanted_ros or stamp.get('ros', ROS_DISTROS[0])
    usable = usable and stamp.get('ros', ros) == ros
    if wanted and usable:
        usable = python_facts(wanted) == python_facts(VENV_PYTHON)
    if usable and stamp == venv_content(ros):
        return digest(text=json.dumps(stamp))

    check_machine()
    if not usable:
        make_venv(find_python(wanted))
    VENV_STAMP.unlink(missing_ok=True)
    install_requirements(ros)
    adapt_exported_paths()
    # In a workspace of packages, colcon must not look for more of them in here.
    (VENV / 'COLCON_IGNORE').touch()
    (VENV / 'ros_distro').write_text(f'{ros}\n')
    VENV_STAMP.write_text(json.dumps(venv_content(ros)))
    return digest(text=json.dumps(venv_content(ros)))


def requirements(ros):
    """Files with the packages that a virtual environment has."""
    tools = ROOT / 'tools'
    return [
        ROOT / 'requirements.txt',
        *(tools / f'requirements-{name}.txt' for name in (ros, 'ros', 'dev')),
    ]


def has_pip():
    """Whether .venv/ is whole: not if making it was interrupted, or if its Python has moved on."""
    facts = python_facts(VENV_PYTHON)
    return (
        facts is not None
        and (VENV / 'lib' / f'python{facts["version"]}' / 'site-packages' / 'pip').is_dir()
    )


def venv_content(ros):
    """What the virtual environment is made of: where, by which Python, with which packages."""
    return {
        'root': str(ROOT),
        'python': (VENV / 'pyvenv.cfg').read_text(),
        'ros': ros,
        'requirements': digest([*requirements(ros), Path(__file__)]),
    }


def check_machine():
    """Say at once what the later steps would stumble over."""
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        raise SetUpError(
            f'the ROS 2 wheels are for Linux on x86_64, this is {platform.system()} on '
            f'{platform.machine()}. Use a ROS 2 distribution and colcon build instead.'
        )
    missing = [tool for tool in ('g++', 'cmake', 'make') if shutil.which(tool) is None]
    if missing:
        raise SetUpError(
            f'{", ".join(missing)} not found; on Debian and Ubuntu: apt-get install '
            + ' '.join(missing)
        )
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if free_gib < NEEDED_GIB and not VENV.exists():
        raise SetUpError(
            f'{free_gib:.1f} GiB are free in {ROOT}; torch, ROS 2 and the build need {NEEDED_GIB}.'
        )


def find_python(wanted):
    """Command of a Python that the wheels exist for and that can make a virtual environment."""
    tried = [wanted] if wanted else ['python3', *(f'python{v}' for v in reversed(VERSIONS))]
    seen = []
    for command in tried:
        facts = python_facts(command)
        if not facts:
            continue
        seen.append(f'{command} is {facts["version"]}')
        if facts['version'] not in VERSIONS:
            continue
        package = f'python{facts["version"]}'
        if not facts['ensurepip']:
            raise SetUpError(
                f'{command} cannot make virtual environments (ensurepip is missing); '
                f'on Debian and Ubuntu: apt-get install {package}-venv'
            )
        if not facts['header']:
            raise SetUpError(
                f'the headers of {command} are missing (Python.h; the ROS messages are compiled '
                f'for Python); on Debian and Ubuntu: apt-get install {package}-dev'
            )
        return command
    raise SetUpError(
        f'no Python of version {", ".join(VERSIONS)} found ({"; ".join(seen) or "none at all"}). '
        'Name one: make build PYTHON=/path/to/python3.12'
    )


def python_facts(command):
    """What a Python interpreter is and has; None where it does not run."""
    code = (
        'import importlib.util, json, pathlib, sys, sysconfig;'
        'print(json.dumps({'
        '"version": "%d.%d" % sys.version_info[:2],'
        '"base": sys.base_prefix,'
        '"ensurepip": importlib.util.find_spec("ensurepip") is not None,'
        '"header": (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists()}))'
    )
    try:
        done = subprocess.run(
            [str(command), '-I', '-S', '-c', code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return json.loads(done.stdout)


def make_venv(command):
    """Make an empty virtual environment in .venv/."""
    say(f'making .venv with {command}')
    run([command, '-m', 'venv', '--clear', str(VENV)], log=ROOT / 'build' / 'venv.log')


def install_requirements(ros):
    """Install every requirement in one go, so that all of them bound each version."""
    say('installing torch, open_clip and ROS 2 (about 6 GB; some minutes)')
    arguments = [argument for path in requirements(ros) for argument in ('-r', str(path))]
    run(
        [str(VENV_PYTHON), '-m', 'pip', 'install', '--progress-bar', 'off', *arguments],
        log=VENV / 'pip.log',
    )


def adapt_exported_paths():
    """Point the wheels' CMake files to this machine's headers.

    They name the folders of the machine that built them for Python's and NumPy's headers, and CMake
    refuses to use a target whose folders do not exist.
    """
    code = 'import numpy, sysconfig as s; print(s.get_path("include")); print(numpy.get_include())'
    done = subprocess.run(
        [str(VENV_PYTHON), '-c', code], capture_output=True, text=True, check=True, env=clean_env()
    )
    python_include, numpy_include = done.stdout.splitlines()
    for path in VENV.glob('share/*/cmake/*.cmake'):
        old = path.read_text()
        new = re.sub(r'/opt/python/[^;"]*/numpy/(_core|core)/include', numpy_include, old)
        new = re.sub(r'/opt/python/[^;"]*/include/python3\.\d+', python_include, new)
        if '/opt/python/' in new:
            raise SetUpError(f'{path} names folders of the machine that built it; please report.')
        if new != old:
            path.write_text(new)


# ---------------------------------------------------------------- colcon


def set_up_build(venv_key, ros):
    """Build and install the package with colcon, where something that needs it has changed."""
    interfaces = sorted(path for k in ('msg', 'srv', 'action') for path in ROOT.glob(f'{k}/*.{k}'))
    key = digest(
        [ROOT / 'package.xml', ROOT / 'CMakeLists.txt', *interfaces],
        # Files are installed as links: a changed one needs no build, a new one does.
        text='\n'.join([venv_key, *installed_names()]),
    )
    stamp = read_stamp(BUILD_STAMP)
    if stamp.get('key') == key:
        return
    BUILD_STAMP.unlink(missing_ok=True)
    if stamp.get('venv') != venv_key:
        shutil.rmtree(ROOT / 'build', ignore_errors=True)
    # Nothing of an older state may stay behind, such as a link to a file that is gone.
    shutil.rmtree(ROOT / 'install', ignore_errors=True)
    say('building the ROS package')
    env = clean_env()
    env['AMENT_PREFIX_PATH'] = env['CMAKE_PREFIX_PATH'] = str(VENV)
    env.update(ROS_VERSION='2', ROS_PYTHON_VERSION='3', ROS_DISTRO=ros)
    run(
        [
            *(str(VENV / 'bin' / 'colcon'), 'build', '--base-paths', str(ROOT)),
            *('--symlink-install', '--event-handlers', 'console_cohesion+', '--cmake-args'),
            *(f'-DPython3_EXECUTABLE={VENV_PYTHON}', '-DCMAKE_BUILD_TYPE=Release'),
        ],
        log=ROOT / 'build' / 'colcon.log',
        env=env,
    )
    BUILD_STAMP.write_text(json.dumps({'key': key, 'venv': venv_key}))


def installed_names():
    """Names of the files that CMakeLists.txt installs from the source tree."""
    for folder in ('cliptrase_ros', 'launch', 'config'):
        for path in sorted((ROOT / folder).rglob('*')):
            if path.is_file() and path.suffix != '.pyc':
                yield str(path.relative_to(ROOT))


# ---------------------------------------------------------------- helpers


def clean_env():
    """The environment without what another ROS, another virtual environment or make put there."""
    foreign = ('PYTHON', 'AMENT_', 'CMAKE_', 'COLCON_', 'ROS_', 'MAKE', 'MFLAGS', '_ROS_WHEELS')
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env['VIRTUAL_ENV'] = str(VENV)
    env['PATH'] = f'{VENV / "bin"}{os.pathsep}{env.get("PATH", os.defpath)}'
    return env


def run(command, log, env=None):
    """Run a command into a log file; on a terminal its latest line is shown meanwhile.

    Raises SetUpError with the end of the log when the command fails.
    """
    started = time.monotonic()
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env or clean_env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if sys.stdout.isatty():
                width = shutil.get_terminal_size().columns - 1
                print('\r\033[K' + line.strip()[:width], end='', flush=True)
    if sys.stdout.isatty():
        print('\r\033[K', end='')
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(''.join(lines))
    if process.returncode != 0:
        tail = ''.join(lines[-40:])
        raise SetUpError(f'this failed (all of its output: {log}): {" ".join(command)}\n{tail}')
    say(f'  done in {time.monotonic() - started:.0f} s')


def digest(paths=(), text=''):
    """Hash over the names and contents of files, and a text."""
    total = hashlib.sha256(text.encode())
    for path in paths:
        total.update(f'\0{path.relative_to(ROOT)}\0'.encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def read_stamp(path):
    """Content of a stamp file; empty where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def say(text):
    """One line of progress."""
    print(f'set-up: {text}', flush=True)


if __name__ == '__main__':
    sys.exit(main())
