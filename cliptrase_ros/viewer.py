"""Pictures, labels, masks and points in the Rerun viewer, or in a recording for it; no ROS."""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cliptrase_ros.messages.masks import Box, label_run_lengths
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.segmentation.run_lengths import find_runs
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, VocabularyClass

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.segmenter import Segmentation

#: What `pip install` takes where the SDK is missing.
REQUIREMENT = 'rerun-sdk'
#: Suffix of recordings.
SUFFIX = '.rrd'

_APPLICATION = 'cliptrase'
_JPEG_QUALITY = 90
# Of the machine's; beyond it the oldest pictures are dropped, as a robot may be watched for hours.
_MEMORY_LIMIT = '25%'


class ViewerError(ValueError):
    """Nothing can be shown or recorded; the message says why and what to do."""


@dataclass(frozen=True)
class ShownClass:
    """A class as the viewer shows it; its colour is RGB, 0..255."""

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class ShownMask:
    """A class present in a picture: what the viewer takes of cliptrase_ros/ClassMask."""

    class_id: int
    class_name: str
    confidence: float
    roi: Box


class Viewer:
    """A window of the viewer, or a recording; a context manager.

    Everything shown has the path `/SOURCE/OUTPUT`, the source being a camera, a video or `photos`.
    One thread at a time may use it.
    """

    def __init__(self, destination: Path | str | None):
        """Open a window or a recording.

        Args:
            destination: A file ending in .rrd; the address of a viewer
                (`rerun+http://HOST:9876/proxy`); None for a window on this machine's display.

        Raises:
            ViewerError: It cannot be opened.
        """
        self._rerun = check_viewer(destination)
        # What is shown of each source so far.
        self._classes: dict[str, Sequence[ShownClass | VocabularyClass]] = {}
        self._outputs: dict[str, set[str]] = defaultdict(set)
        self._recording = self._rerun.RecordingStream(_APPLICATION)
        try:
            if destination is None:
                self._open_window()
            elif _is_address(destination):
                self._recording.connect_grpc(str(destination))
            else:
                self._recording.save(destination)
        except (OSError, RuntimeError, ValueError) as error:
            raise ViewerError(str(error)) from error

    def __enter__(self) -> 'Viewer':
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Send or write what is not sent or written yet."""
        self._recording.disconnect()

    def _open_window(self) -> None:
        # The SDK looks for its program on PATH, which lacks a virtual environment that is not
        # activated; ROS starts nodes like that.
        programs = Path(sys.executable).parent
        os.environ['PATH'] = f'{programs}{os.pathsep}{os.environ.get("PATH", os.defpath)}'
        self._recording.spawn(memory_limit=_MEMORY_LIMIT)

    def set_stamp(self, stamp_ns: int) -> None:
        """What is shown next belongs to this time: nanoseconds since 1970."""
        self._recording.reset_time()
        self._recording.set_time('stamp', timestamp=np.datetime64(stamp_ns, 'ns'))

    def set_video_time(self, time_s: float) -> None:
        """What is shown next belongs to this time: seconds since the beginning of a video."""
        self._recording.reset_time()
        self._recording.set_time('video', duration=time_s)

    def set_photo(self, number: int) -> None:
        """What is shown next belongs to the photo of this number."""
        self._recording.reset_time()
        self._recording.set_time('photo', sequence=number)

    def show_segmentation(
        self, source: str, picture: np.ndarray, segmentation: 'Segmentation', title: str = ''
    ) -> None:
        """Show a picture and what the engine made of it.

        Args:
            source: Camera or video, or `photos`.
            picture: uint8 (H, W, 3) RGB.
            title: Such as a file name.
        """
        self.show_classes(source, segmentation.vocabulary.classes)
        self.show_image(source, picture)
        self.show_label(source, segmentation.label)
        self.show_confidence(source, segmentation.confidence)
        runs = find_runs(segmentation.label)
        boxes = label_run_lengths(runs)
        masks = [
            ShownMask(c.entry.id, c.entry.name, c.confidence, boxes[c.entry.id][0])
            for c in classes_present(segmentation, runs)
        ]
        self.show_masks(source, masks)
        if title:
            self._log(source, 'title', self._rerun.TextDocument(title))

    def show_classes(self, source: str, classes: Sequence[ShownClass | VocabularyClass]) -> None:
        """Name and colour the labels shown from now on; cheap where nothing has changed."""
        if self._classes.get(source) == classes:
            return
        self._classes[source] = classes
        unlabelled = (UNLABELLED, 'unlabelled', (128, 128, 128, 0))
        self._recording.log(
            self._path(source),
            self._rerun.AnnotationContext(
                [unlabelled, *((c.id, c.name, (*c.color, 255)) for c in classes)]
            ),
        )

    def show_image(self, source: str, picture: np.ndarray) -> None:
        """Show uint8 (H, W, 3) RGB."""
        self._log_picture(source, 'image', picture, 'RGB')

    def show_label(self, source: str, label: np.ndarray) -> None:
        """Show uint8 (H, W) class ids over the image."""
        self._log(source, 'label', self._rerun.SegmentationImage(label, opacity=0.5))

    def show_overlay(self, source: str, overlay: np.ndarray) -> None:
        """Show uint8 (H, W, 3) RGB."""
        self._log_picture(source, 'overlay', overlay, 'RGB')

    def show_confidence(self, source: str, confidence: np.ndarray) -> None:
        """Show uint8 (H, W); 255 is certain."""
        self._log_picture(source, 'confidence', confidence, 'L')

    def show_masks(self, source: str, masks: Sequence[Message]) -> None:
        """Show the box of every class present, with its name and confidence.

        Args:
            masks: `ShownMask`, or messages of type cliptrase_ros/ClassMask.
        """
        self._log(
            source,
            'masks',
            self._rerun.Boxes2D(
                mins=[(m.roi.x_offset, m.roi.y_offset) for m in masks],
                sizes=[(m.roi.width, m.roi.height) for m in masks],
                labels=[f'{m.class_name} {m.confidence:.2f}' for m in masks],
                class_ids=[m.class_id for m in masks],
            ),
        )

    def show_points(self, source: str, positions: np.ndarray, labels: np.ndarray) -> None:
        """Show points in the colours of their classes.

        Args:
            positions: float32 (N, 3), metres, x right, y down, z forwards.
            labels: uint8 (N,), class ids.
        """
        self._log(source, 'points', self._rerun.Points3D(positions, class_ids=labels))

    def _log_picture(self, source: str, output: str, picture: np.ndarray, colors: str) -> None:
        image = self._rerun.Image(np.ascontiguousarray(picture), colors)
        self._log(source, output, image.compress(jpeg_quality=_JPEG_QUALITY))

    def _log(self, source: str, output: str, content) -> None:
        outputs = self._outputs[source]
        if output not in outputs:
            outputs.add(output)
            if output == 'points':
                # The axes of a camera's optical frame.
                axes = self._rerun.ViewCoordinates.RDF
                self._recording.log(self._path(source, output), axes, static=True)
            self._arrange()
        self._recording.log(self._path(source, output), content)

    def _path(self, *parts: str) -> str:
        # A source may be the path of a file, with characters that mean something in a path here.
        return self._rerun.new_entity_path(list(parts))

    def _arrange(self) -> None:
        """Lay out what has been shown so far: the labelled picture, the rest beside it in tabs."""
        import rerun.blueprint as layout

        over_each_other = ('image', 'label', 'masks')
        in_tabs = {
            'points': layout.Spatial3DView,
            'overlay': layout.Spatial2DView,
            'confidence': layout.Spatial2DView,
            'title': layout.TextDocumentView,
        }
        rows = []
        for source, outputs in self._outputs.items():
            views = []
            if outputs & set(over_each_other):
                contents = [f'+ $origin/{name}' for name in over_each_other]
                origin = self._path(source)
                views.append(layout.Spatial2DView(name=source, origin=origin, contents=contents))
            tabs = [
                view(name=f'{source} {output}', origin=self._path(source, output))
                for output, view in in_tabs.items()
                if output in outputs
            ]
            if tabs:
                views.append(layout.Tabs(*tabs))
            rows.append(layout.Horizontal(*views))
        self._recording.send_blueprint(layout.Blueprint(layout.Vertical(*rows)))


def check_viewer(destination: Path | str | None):
    """Refuse what a `Viewer` could not be made for.

    Returns:
        The Rerun SDK.

    Raises:
        ViewerError: It lacks, or there is nothing to show or record on.
    """
    try:
        import rerun
    except ImportError as error:
        raise ViewerError(
            f'the viewer needs the Rerun SDK, which this Python does not have ({error}); install '
            f'it with `pip install {REQUIREMENT}`'
        ) from error
    if not hasattr(rerun, 'RecordingStream'):
        # Another project had the name before.
        raise ViewerError(
            f'the Python package rerun that is installed is not the Rerun SDK, or an old one; '
            f'install it with `pip install --upgrade {REQUIREMENT}`'
        )
    if destination is None:
        _require_display()
    elif not _is_address(destination):
        _check_recording(Path(destination))
    return rerun


def _is_address(destination: Path | str) -> bool:
    return isinstance(destination, str) and '://' in destination


def _check_recording(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise ViewerError(f'the recording is to be {path}; its name must end in {SUFFIX}')
    if path.exists():
        raise ViewerError(f'{path} exists already; remove it or choose another name')
    if not path.parent.is_dir():
        raise ViewerError(f'{path} cannot be written: {path.parent} is no folder')


def _require_display() -> None:
    if not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise ViewerError(
            f'there is no display to open a window on; name a file for a recording, such as '
            f'run{SUFFIX}, and open it with `rerun` where there is one'
        )
