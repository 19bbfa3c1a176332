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
    # `rerun_viewer`, and --view of the commands; refinement `sam`; HEIC photos; a cluster and the
    # exports of `cliptrase batch`, then the storages that it reads and writes.
    extras_require={
        'viewer': ['rerun-sdk>=0.26'],
        'sam': ['transformers>=5'],
        'heif': ['pillow-heif>=0.22'],
        'fleet': ['ray>=2.40', 'pyarrow>=16', 'pycocotools>=2.0.8'],
        's3': ['s3fs>=2024.10'],
        'gs': ['gcsfs>=2024.10'],
        'az': ['adlfs>=2024.12'],
        'http': ['aiohttp>=3.9'],
    },
    entry_points={'console_scripts': ['cliptrase = cliptrase_ros.cli:main']},
    # Beside colcon's outputs, not between them.
    options={'build': {'build_base': 'build/pip'}},
)
