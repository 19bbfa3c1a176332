"""`pip install .`: the engine, the toybox and the `cliptrase` command, without ROS.

On ROS, colcon builds this package from package.xml and CMakeLists.txt and never looks here.
"""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
package = ElementTree.parse(ROOT / 'package.xml').getroot()
maintainer = package.find('maintainer')


def requirements():
    """Lines of requirements.txt without comments."""
    lines = (line.split('#')[0].strip() for line in (ROOT / 'requirements.txt').open())
    return [line for line in lines if line]


setup(
    name=package.findtext('name'),
    version=package.findtext('version'),
    description=' '.join(package.findtext('description').split()),
    license=package.findtext('license'),
    maintainer=maintainer.text,
    maintainer_email=maintainer.get('email'),
    packages=[
        *find_packages(include=['cliptrase_ros', 'cliptrase_ros.*']),
        'cliptrase_ros.message_definitions',
    ],
    # What `cliptrase bag` writes; colcon installs the same files as share/cliptrase_ros/msg.
    package_dir={'cliptrase_ros.message_definitions': 'msg'},
    package_data={
        'cliptrase_ros': ['py.typed'],
        'cliptrase_ros.message_definitions': ['*.msg'],
        'cliptrase_ros.evaluation': ['names/*.txt'],
        'cliptrase_ros.toybox': ['model/*'],
    },
    python_requires='>=3.10',
    install_requires=requirements(),
    # `rerun_viewer`, and --view of the commands; refinement `sam`; HEIC photos.
    extras_require={
        'viewer': ['rerun-sdk>=0.26'],
        'sam': ['transformers>=5'],
        'heif': ['pillow-heif>=0.22'],
    },
    entry_points={'console_scripts': ['cliptrase = cliptrase_ros.cli:main']},
    # Beside colcon's outputs, not between them.
    options={'build': {'build_base': 'build/pip'}},
)
