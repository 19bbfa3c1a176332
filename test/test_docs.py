"""The documentation: its commands work, its links lead somewhere, its pictures are there and small.

Commands of `cliptrase` run on tiny inputs that have the names used in the documentation. Of what
needs something that is not here (`NEEDS`), whatever can be checked is: targets, options,
executables and launch arguments exist. What nodes make of the command lines of `ros2`:
test/ros/test_command_lines.py.
"""

import ast
import itertools
import re
import shlex
import shutil
from pathlib import Path

import bags
import cv2
import pytest
import yaml
from fleet_runs import in_threads
from packaging.requirements import Requirement
from pages import PAGES, ROOT, commands, every, ids, python_blocks
from PIL import Image

from cliptrase_ros import __version__, cli
from cliptrase_ros.toybox.scenes import sample_room
from cliptrase_ros.toybox.sequences import photograph

#: What commands begin with that this machine cannot run, and why.
NEEDS = {
    'make': 'minutes: make runs these tests',
    'ros2': 'a ROS 2 distribution',
    'rosdep': 'a ROS 2 distribution',
    'colcon': 'a ROS 2 distribution',
    'sudo': 'a machine of its own',
    'docker': 'a registry',
    'pip': 'a network',
    'yolo': 'a network',
    'ray': 'a cluster',
    'hf': 'a network',
    'git': 'a network',
    'scp': 'a robot',
    'rsync': 'a robot',
    'rerun': 'a display',
    'python': 'minutes',
    'python3': 'an environment to make',
    'pytest': 'minutes: the tests run these tests',
}
#: Commands of cliptrase that do not run here: what they begin with, and why.
NOT_RUN = {
    'top': 'ROS 2; test/ros/test_top.py runs it',
    'demo': 'ROS 2; test/ros/test_demo.py runs it',
    'bench': 'minutes; test/test_bench.py runs it',
    'verify': 'recordings; test/test_cli.py runs it',
    'evaluate': 'datasets, or minutes; test/test_evaluate_command.py runs it',
    'segment 0': 'a webcam',
    'batch': 'storage and processes; below, and test/test_fleet_*.py',
    'bag drives/monday labelled --merge': 'results; test/test_bag.py runs it',
}
#: Shell words that are no commands of anybody.
SHELL = {'source', 'export', 'touch', 'cd', 'mkdir'}


def test_every_command_is_run_or_marked():
    known = {'cliptrase', *NEEDS, *SHELL}
    # Output that is shown begins with words, too, but none that could be typed.
    typed = {
        (page.name, name)
        for page in PAGES
        for name, arguments in commands(page)
        if name not in known
        and (shutil.which(name) or (arguments[:1] and arguments[0].startswith('-')))
    }
    assert typed == set()
    assert len(every('cliptrase')) >= 20


#: Arguments of the command lines that `cliptrase --help` shows.
EXAMPLES = [
    shlex.split(line) for line in re.findall(r'^  cliptrase (.*?)(?: {4}.*)?$', cli.EXAMPLES, re.M)
]


def test_examples_of_the_help_parse():
    assert len(EXAMPLES) == cli.EXAMPLES.count('  cliptrase ')
    for arguments in EXAMPLES:
        assert cli._parser().parse_args(arguments).run


def test_words_are_text_to_yaml():
    """They are copied from one command line to another, and ROS reads its own as YAML."""
    lines = EXAMPLES + [arguments for name in ('cliptrase', 'ros2') for _, arguments in every(name)]
    words = [
        value.removeprefix('vocabulary:=')
        for line in lines
        for flag, value in itertools.pairwise(line)
        if flag in ('-v', '--vocabulary') or value.startswith('vocabulary:=')
    ]
    assert len(words) >= 20
    assert words == [yaml.safe_load(value) for value in words]


CLIPTRASE = every('cliptrase')


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """A folder with everything that commands in the documentation are given."""
    folder = tmp_path_factory.mktemp('docs')
    (folder / 'photos').mkdir()
    (folder / 'site' / 'north').mkdir(parents=True)
    for name in ('photos/a.jpg', 'photos/b.jpg', 'site/north/c.jpg'):
        Image.fromarray(bags.picture(0, 96, 128)).save(folder / name)
    Image.fromarray(bags.picture(1, 480, 640)).save(folder / 'photo.jpg')
    writer = cv2.VideoWriter(
        str(folder / 'drive.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 4.0, (64, 48)
    )
    for seed in range(4):
        writer.write(bags.picture(seed))
    writer.release()
    bags.write_bag(folder / 'drive', bags.contents(2))
    shutil.copytree(folder / 'drive', folder / 'recording')
    shutil.copy(folder / 'drive' / 'drive.mcap', folder / 'drive.mcap')
    label = bags.image(bags.picture(0)[..., 0], 'mono8')
    topic = ('/cliptrase/front/label', 'sensor_msgs/msg/Image', [], [(bags.START, label)])
    bags.write_bag(folder / 'recording_labels', [topic])
    (folder / 'words.txt').write_text('road\nperson = pedestrian\n')
    return folder


@pytest.mark.parametrize(('page', 'arguments'), CLIPTRASE, ids=ids(CLIPTRASE))
def test_cliptrase(page, arguments, inputs, tiny_model, tmp_path, monkeypatch, capsys):
    line = ' '.join(arguments)
    assert cli._parser().parse_args(arguments).run
    if any(f'{line} '.startswith(f'{beginning} ') for beginning in NOT_RUN):
        return
    shutil.copytree(inputs, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    arguments = list(arguments)
    if arguments[-1] == '--view':
        arguments.append('shown.rrd')  # there is no display
    if '--view' in arguments:
        pytest.importorskip('rerun', reason='needs the viewer; `make test` brings it')
    # Of the same options given twice the last counts.
    status = cli.main([*arguments, '--model', tiny_model, '--device', 'cpu', '--resolution', '64'])
    assert (status, capsys.readouterr().err) == (0, '')


MAKE = every('make')


@pytest.mark.parametrize(('page', 'arguments'), MAKE, ids=ids(MAKE))
def test_make(page, arguments):
    targets = re.findall(r'^([a-z-]+):.*##', (ROOT / 'Makefile').read_text(), re.M)
    assert arguments[0] in targets
    for assignment in arguments[1:]:
        assert re.search(
            rf'^{assignment.partition("=")[0]} \?=', (ROOT / 'Makefile').read_text(), re.M
        )


def test_scripts_exist():
    for _, arguments in every('python'):
        assert (ROOT / arguments[0]).is_file()


ROS2 = [
    (page, arguments) for page, arguments in every('ros2') if 'cliptrase' in ' '.join(arguments)
]


@pytest.mark.parametrize(('page', 'arguments'), ROS2, ids=ids(ROS2))
def test_ros2(page, arguments):
    verb = arguments[:2]
    if verb[0] == 'run' and verb[1] == 'cliptrase_ros':
        assert arguments[2] in executables()
    elif verb[0] == 'launch':
        # Read as text, because wheels of ROS have no launch.
        text = (ROOT / 'launch' / arguments[2]).read_text()
        known = re.findall(r"DeclareLaunchArgument\(\s*'(\w+)'", text)
        parameters = re.search(r'^PARAMETER_ARGUMENTS = ({.*?^})', text, re.M | re.S).group(1)
        known += ast.literal_eval(parameters)
        assert {argument.partition(':=')[0] for argument in arguments[3:]} <= set(known)
    else:
        # Of others there is nothing of ours in them but names.
        assert verb[0] in ('topic', 'lifecycle', 'security', 'node', 'pkg', 'bag', 'param')


def executables():
    return re.search(r'foreach\(executable ([^)]*)\)', (ROOT / 'CMakeLists.txt').read_text())[
        1
    ].split()


FLEET = ROOT / 'docs' / 'fleet.md'
#: That of planners.md needs ROS: test/ros/test_outputs.py.
ELSEWHERE = FLEET, ROOT / 'docs' / 'planners.md'
PAGES_WITH_PYTHON = [page for page in PAGES if python_blocks(page) and page not in ELSEWHERE]


@pytest.mark.parametrize('page', PAGES_WITH_PYTHON, ids=lambda page: page.name)
def test_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = photograph(sample_room(7), 2.0, 96, 128).image
    for name in ('photo.jpg', 'a.jpg', 'b.jpg'):
        Image.fromarray(image).save(name)
    writer = cv2.VideoWriter('drive.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 4.0, (128, 96))
    for _ in range(2):
        writer.write(image[..., ::-1].copy())
    writer.release()
    names = {'image': image, 'frames': [image, image]}
    for block in python_blocks(page):
        exec(block, names)
    assert (names['result'].label < 255).any()


# Of pycocotools, over NumPy 2.
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_first_steps_with_a_fleet(tmp_path, monkeypatch, capsys):
    for library in ('duckdb', 'pandas', 'pyarrow', 'pycocotools'):
        pytest.importorskip(library, reason='reads datasets; `make test` brings it')
    (tmp_path / 'docs' / 'images').mkdir(parents=True)
    shutil.copy(ROOT / 'docs' / 'images' / 'output_image.jpg', tmp_path / 'docs' / 'images')
    monkeypatch.chdir(tmp_path)
    first, second = [arguments for name, arguments in commands(FLEET) if name == 'cliptrase'][:2]
    with in_threads():
        assert cli.main([*first, '--device', 'cpu', '--threads', '1', '--resolution', '64']) == 0
    assert cli.main(second) == 0
    for block in python_blocks(FLEET):
        exec(block, {})
    shown = capsys.readouterr()
    assert 'damage' in shown.out  # DuckDB's table of what is done
    assert shown.out.count('output_image.jpg') == 1  # pandas
    assert shown.out.count('floor') >= 2  # DuckDB, pycocotools
    assert shown.err == ''


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'[a-z+]+:', target):
            continue
        path, _, fragment = target.partition('#')
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f'{page.name}: {target}'
        if fragment:
            assert fragment in anchors(linked), f'{page.name}: {target}'


def anchors(page):
    """Anchors of a page's headings, as forges make them."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    for heading in re.findall(r'^#+ (.*)$', text, re.M):
        plain = re.sub(r'[^\w\- ]', '', heading.lower())
        yield plain.replace(' ', '-')


def test_pictures_are_small_and_used():
    used = set()
    for page in PAGES:
        used |= {
            Path(name).name for name in re.findall(r'\]\(([^)]*images/[^)]*)\)', page.read_text())
        }
    files = [path for path in (ROOT / 'docs' / 'images').iterdir() if path.is_file()]
    assert {path.name for path in files} == used
    for path in files:
        assert path.stat().st_size < 300_000, path.name


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    assert citation['version'] in (ROOT / 'CHANGELOG.md').read_text()
    assert citation['preferred-citation']['year'] == 2024


def test_packages_for_robots_have_the_limits_of_the_requirements():
    required = {
        requirement.name.lower().replace('-', '_'): requirement.specifier
        for requirement in (
            Requirement(line)
            for line in (ROOT / 'requirements.txt').read_text().splitlines()
            if line and not line.startswith('#')
        )
    }
    checked = 0
    for page in PAGES:
        for program, arguments in commands(page):
            if program != 'pip' or not any('open_clip_torch' in word for word in arguments):
                continue
            named = [Requirement(word) for word in arguments if re.match('[a-z_]+($|[<>=])', word)]
            for one in named:
                if one.name in required:
                    assert one.specifier == required[one.name], f'{page.name}: {one}'
                    checked += 1
    assert checked >= 4 * 4
