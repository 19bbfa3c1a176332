"""CONTRIBUTING shows the house: its rooms are the folders, and each uses only rooms above it."""

import ast
import re
import subprocess
import sys

import pytest
from pages import PAGES, ROOT

PACKAGE = ROOT / 'cliptrase_ros'
#: What only a room that may import ROS can import.
ROS = (
    *('rclpy', 'rcl_interfaces', 'geometry_msgs', 'sensor_msgs', 'std_msgs', 'vision_msgs'),
    *('cv_bridge', 'tf2_msgs', 'tf2_py'),
)
GENERATED = ('cliptrase_ros.msg', 'cliptrase_ros.srv', 'cliptrase_ros.action')


def shown_house():
    """Paths below cliptrase_ros/ in the order of CONTRIBUTING's drawing, with their depth."""
    page = (ROOT / 'CONTRIBUTING.md').read_text()
    drawing = re.search(r'^```\ncliptrase_ros/\n(.*?)^```', page, re.M | re.S).group(1)
    paths, folders = [], []
    for line in drawing.splitlines():
        if not line.startswith('  '):
            break
        indent, names = re.match(r'( +)((?:[a-z_/]+(?:/|\.py)(?: |$))*)', line).groups()
        depth = len(indent) // 2 - 1
        for name in names.split():
            paths.append('/'.join([*folders[:depth], name.rstrip('/')]))
        if names.strip().endswith('/'):
            folders[depth:] = [names.split()[-1].rstrip('/')]
    return paths


HOUSE = shown_house()
MODULES = sorted(path for path in PACKAGE.rglob('*.py') if '__pycache__' not in path.parts)


def room_of(module):
    """The innermost entry of the house that a dotted module name (below the package) lies in."""
    path = module.replace('.', '/')
    inside = [
        entry for entry in HOUSE if f'{path}.py' == entry or f'{path}/'.startswith(f'{entry}/')
    ]
    return max(inside, key=len, default=None)


def imported_modules(path):
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are absolute'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def own_imports(path):
    """Rooms that a file imports from."""
    for name in imported_modules(path):
        if name.startswith('cliptrase_ros.') and not name.startswith(GENERATED):
            room = room_of(name.removeprefix('cliptrase_ros.'))
            if room is not None:
                yield room


def module_name(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')


def test_every_folder_and_no_other_is_shown():
    folders = {
        str(path.parent.relative_to(PACKAGE))
        for path in PACKAGE.rglob('__init__.py')
        if path.parent != PACKAGE
    }
    shown = {entry for entry in HOUSE if not entry.endswith('.py')}
    assert shown == folders
    top_level = {path.name for path in PACKAGE.glob('*.py') if path.name != '__init__.py'}
    assert {entry for entry in HOUSE if entry.endswith('.py') and '/' not in entry} == top_level
    for entry in HOUSE:
        assert (PACKAGE / entry).exists(), entry


@pytest.mark.parametrize('path', MODULES, ids=lambda path: module_name(path) or 'package')
def test_a_room_uses_only_rooms_above_it(path):
    module = module_name(path)
    room = room_of(module)
    if room is None:
        assert path in (PACKAGE / '__init__.py',), f'{path} is in no room'
        return
    for used in own_imports(path):
        is_outside = not f'{used}/'.startswith(f'{room}/') and not f'{room}/'.startswith(f'{used}/')
        if is_outside:
            assert HOUSE.index(used) < HOUSE.index(room), f'{path} uses {used}, which is below it'


@pytest.mark.parametrize('path', MODULES, ids=lambda path: module_name(path) or 'package')
def test_only_the_nodes_know_ros(path):
    if module_name(path).startswith('ros'):
        return
    for name in imported_modules(path):
        assert name.split('.')[0] not in ROS, f'{path} imports {name}'
        assert not name.startswith(GENERATED), f'{path} imports {name}'


def test_what_makes_the_toybox_is_not_imported_at_run_time():
    for path in MODULES:
        if not module_name(path).startswith('toybox.training'):
            assert 'toybox/training' not in own_imports(path), path


def test_the_questions_name_files_that_are_there():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    table = text.split('## Where would I change', 1)[1].split('\n## ', 1)[0]
    rows = [line for line in table.splitlines() if line.startswith('| ')][1:]
    assert len(rows) >= 10
    for row in rows:
        _, places = row.strip('| ').split(' | ')
        named = re.findall(r'`([\w./]+\.(?:py|yaml|md|msg|txt|xml))`', places)
        assert named, row
        for name in named:
            assert (PACKAGE / name).exists() or (ROOT / name).exists(), f'{name}, in {row}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_files_that_pages_name_are_there(page):
    for name in re.findall(r'`([a-z_./]+/[a-z_]+\.py)`', page.read_text()):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_importing_the_ground_needs_no_torch():
    ground = 'cliptrase_ros.segmentation.settings, cliptrase_ros.segmentation.vocabulary'
    code = f'import {ground}, sys; sys.exit("torch" in sys.modules or "cv2" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
