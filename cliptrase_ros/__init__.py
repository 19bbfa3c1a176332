"""Open-vocabulary semantic segmentation of camera images with CLIP, without training, for ROS 2.

`load` gives a `Model`, and a `Model` gives a `Result` for each image; docs/python.md has examples.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cliptrase_ros.api import Model, ModelError, Result, VocabularyError, load

    __version__: str

__all__ = ['Model', 'ModelError', 'Result', 'VocabularyError', '__version__', 'load']

# The generated messages (cliptrase_ros.msg) live beside this package only where colcon has
# installed it; run from the source tree, the two portions are found in two places.
__path__ = pkgutil.extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    # On first use: nodes and commands import this package too, and PyTorch takes seconds.
    if name == '__version__':
        return _read_version()
    if name in __all__:
        from cliptrase_ros import api

        return getattr(api, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _read_version() -> str:
    """Version of this package, as package.xml has it."""
    import importlib.metadata
    from pathlib import Path
    from xml.etree import ElementTree

    for folder in Path(__file__).resolve().parents:
        # The source tree, and what colcon installs beside the Python modules.
        for path in (folder / 'package.xml', folder / 'share' / __name__ / 'package.xml'):
            if path.is_file():
                package = ElementTree.parse(path).getroot()
                if package.findtext('name') == __name__:
                    return package.findtext('version', '')
    return importlib.metadata.version(__name__)
