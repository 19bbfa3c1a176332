"""The outputs of a segmentation node in the Rerun viewer, as they come."""

import sys

from cliptrase_ros.ros.executable import run_module

if __name__ == '__main__':
    # Before the imports that take seconds, so that a signal ends them in order.
    sys.exit(run_module('cliptrase_ros.ros.rerun_viewer'))

from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from cliptrase_ros.messages.images import ImageError, decompress_to_rgb, header_stamp_ns, mono8
from cliptrase_ros.messages.points import PointsError, read_points
from cliptrase_ros.messages.transports import TRANSPORTS, VIDEO_TYPES
from cliptrase_ros.messages.video import VideoDecoder, VideoPicture, video_packet
from cliptrase_ros.msg import ClassMasks, Vocabulary
from cliptrase_ros.ros.conversions import message_class, to_rgb
from cliptrase_ros.ros.executable import run_node
from cliptrase_ros.ros.outputs import LATCHED_QOS
from cliptrase_ros.ros.parameters import declare_settings
from cliptrase_ros.ros.settings import ParameterError
from cliptrase_ros.ros.subscribing import VIDEO_QOS
from cliptrase_ros.segmentation.settings import setting, settings_of
from cliptrase_ros.viewer import ShownClass, Viewer

NODE_NAME = 'rerun_viewer'
#: What can be shown, and what is by default: the overlay repeats image and label.
SHOWN = ('image', 'label', 'masks', 'overlay', 'confidence', 'points')
DEFAULT_SHOWN = ('image', 'label', 'masks', 'confidence', 'points')

#: Most images of a camera that wait for their labels, and labels for their images.
_MAX_PENDING = 30


@dataclass(frozen=True)
class ViewerSettings:
    """The parameters of the viewer."""

    node: str = setting('cliptrase', 'The segmentation node to watch.')
    show: tuple[str, ...] = setting(
        DEFAULT_SHOWN,
        'What to show; the node computes nothing else for the viewer.',
        constraints=f'some of {", ".join(SHOWN)}',
    )
    save: str = setting('', 'File ending in .rrd to record to; empty for a window.')
    connect: str = setting(
        '', 'Address of a viewer that runs elsewhere, as in rerun+http://HOST:9876/proxy.'
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.show if name not in SHOWN]
        if unknown:
            raise ParameterError(
                f'show names {", ".join(unknown)}; it must be some of {", ".join(SHOWN)}'
            )
        if self.save and self.connect:
            raise ParameterError('save and connect are both set; one place to show is enough')


class RerunViewer(Node):
    """Subscribes to a node's outputs and shows them, each at the stamp of its image.

    Cameras and their image topics are those that the node names in /diagnostics. Images are shown
    with their labels, the others not at all.

    Attributes:
        shown: How many messages of each output were shown.

    Raises:
        ParameterError: A parameter has a value that cannot be used.
        ViewerError: There is no viewer.
    """

    def __init__(self, **node_arguments):
        super().__init__(NODE_NAME, **node_arguments)
        values = ViewerSettings(**declare_settings(self, settings_of(ViewerSettings)))
        self._show = list(values.show)
        self._watched = self.resolve_topic_name(values.node)
        self.shown: Counter[str] = Counter()
        self._classes: list[ShownClass] = []
        self._cameras: set[str] = set()
        self._viewer = Viewer(Path(values.save) if values.save else values.connect or None)
        self.create_subscription(
            Vocabulary, f'{self._watched}/vocabulary', self._keep_vocabulary, LATCHED_QOS
        )
        self.create_subscription(DiagnosticArray, '/diagnostics', self._find_cameras, 10)
        self.get_logger().info(f'watching {self._watched}: {", ".join(self._show)}')

    def destroy_node(self) -> None:
        """Finish the recording, then the node."""
        self._viewer.close()
        super().destroy_node()

    def _keep_vocabulary(self, vocabulary: Vocabulary) -> None:
        def rgb(color) -> tuple[int, int, int]:
            return tuple(round(255 * value) for value in (color.r, color.g, color.b))

        self._classes = [ShownClass(c.id, c.name, rgb(c.color)) for c in vocabulary.classes]

    def _find_cameras(self, diagnostics: DiagnosticArray) -> None:
        prefix = f'{self._watched.lstrip("/")}: camera '
        for status in diagnostics.status:
            camera = status.name.removeprefix(prefix)
            if status.name.startswith(prefix) and camera not in self._cameras:
                values = {entry.key: entry.value for entry in status.values}
                if 'topic' in values:
                    self._cameras.add(camera)
                    image_type = TRANSPORTS[values.get('transport', 'raw')]
                    self._subscribe(camera, values['topic'], image_type)

    def _subscribe(self, camera: str, image_topic: str, image_type: str) -> None:
        pending = _PendingImages()
        show_image = partial(self._image, pending)
        outputs = {
            'label': (Image, partial(self._label, pending)),
            'masks': (ClassMasks, self._masks),
            'overlay': (Image, self._overlay),
            'confidence': (Image, self._confidence),
            'points': (PointCloud2, self._points),
        }
        for name in self._show:
            if name == 'image':
                self._subscribe_to_images(camera, image_topic, image_type, show_image)
                continue
            message_type, show = outputs[name]
            topic = f'{self._watched}/{camera}/{name}'
            receive = partial(self._receive, name, camera, topic, show)
            self.create_subscription(message_type, topic, receive, 2)
        self.get_logger().info(f'camera {camera}, with images from {image_topic}')

    def _subscribe_to_images(self, camera: str, topic: str, image_type: str, show) -> None:
        receive, qos = partial(self._receive, 'image', camera, topic, show), qos_profile_sensor_data
        if image_type in VIDEO_TYPES:
            receive, qos = partial(self._receive_video, receive, topic, VideoDecoder()), VIDEO_QOS
        try:
            self.create_subscription(message_class(image_type), topic, receive, qos)
        except ImportError as error:
            self.get_logger().warning(f'{topic} is not shown: {error}')

    def _receive_video(self, receive, topic: str, decoder: VideoDecoder, message) -> None:
        try:
            settled = decoder.decode(video_packet(message))
        except ImageError as error:
            settled = [(None, error)]
        for _, outcome in settled:
            if isinstance(outcome, VideoPicture):
                receive(outcome)
            else:
                self.get_logger().warning(f'{topic}: {outcome}', throttle_duration_sec=5.0)

    def _receive(self, output: str, camera: str, topic: str, show, message) -> None:
        try:
            self._viewer.set_stamp(header_stamp_ns(message.header))
            if output in ('label', 'masks', 'points'):
                self._viewer.show_classes(camera, self._classes)
            show(camera, message)
            self.shown[output] += 1
        except (ImageError, PointsError, ValueError) as error:
            self.get_logger().warning(f'{topic}: {error}', throttle_duration_sec=5.0)

    def _image(self, pending: '_PendingImages', camera: str, message) -> None:
        if 'label' not in self._show or pending.add(message):
            self._show_image(camera, message)

    def _label(self, pending: '_PendingImages', camera: str, message: Image) -> None:
        if (image := pending.pop(message)) is not None:
            # Of the same stamp.
            self._show_image(camera, image)
        self._viewer.show_label(camera, mono8(message))

    def _show_image(self, camera: str, message) -> None:
        if isinstance(message, VideoPicture):
            pixels = message.to_rgb()
        elif isinstance(message, CompressedImage):
            pixels = decompress_to_rgb(message)
        else:
            pixels = to_rgb(message)
        self._viewer.show_image(camera, pixels)

    def _masks(self, camera: str, message: ClassMasks) -> None:
        self._viewer.show_masks(camera, message.masks)

    def _overlay(self, camera: str, message: Image) -> None:
        self._viewer.show_overlay(camera, to_rgb(message))

    def _confidence(self, camera: str, message: Image) -> None:
        self._viewer.show_confidence(camera, mono8(message))

    def _points(self, camera: str, message: PointCloud2) -> None:
        self._viewer.show_points(camera, *read_points(message))


class _PendingImages:
    """Images that wait for their labels, and stamps of labels that came first."""

    def __init__(self):
        # By stamp; None for a label that came first.
        self._images: OrderedDict[int, object] = OrderedDict()

    def add(self, image) -> bool:
        """Return whether the labels of an image have come; otherwise it is kept for a while."""
        stamp = header_stamp_ns(image.header)
        if self._images.get(stamp, image) is None:
            del self._images[stamp]
            return True
        self._keep(stamp, image)
        return False

    def pop(self, label: Image):
        """Return the image of a label image, None if it has not come yet."""
        stamp = header_stamp_ns(label.header)
        image = self._images.pop(stamp, None)
        if image is None:
            self._keep(stamp, None)
        return image

    def _keep(self, stamp: int, image) -> None:
        self._images[stamp] = image
        if len(self._images) > _MAX_PENDING:
            self._images.popitem(last=False)


def main(args: list[str] | None = None) -> int:
    """Run the viewer until it is told to end; returns the exit status."""
    return run_node(RerunViewer, NODE_NAME, args)
