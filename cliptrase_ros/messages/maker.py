"""The messages of node and recordings, made in one place for both.

Only the classes differ: those of rclpy take `array.array` in their fields, those of rosbags numpy
arrays. `MessageMaker` takes the two functions that differ, and knows what is in which field.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cliptrase_ros.messages.boxes import box_in_space
from cliptrase_ros.messages.images import compress_label, compress_picture
from cliptrase_ros.messages.masks import label_run_lengths
from cliptrase_ros.messages.points import POINT_FIELD_TYPES
from cliptrase_ros.messages.type_names import (
    CLASS_MASKS,
    COMPRESSED_IMAGE,
    DETECTIONS,
    DETECTIONS_3D,
    IMAGE,
    LABEL_INFO,
    OCCUPANCY_GRID,
    POINTS,
    VOCABULARY,
    Message,
)
from cliptrase_ros.segmentation.instances import (
    Instance,
    Regions,
    connected_regions,
    count_instances,
    find_instances,
)
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.segmenter import Segmentation


@dataclass(frozen=True)
class MessageMaker:
    """Makes messages of one library's classes. Headers handed to it are used unchanged.

    Attributes:
        make: Makes a message, given its type (as in `sensor_msgs/msg/Image`) and, by name, all
            its fields.
        to_field: Turns a contiguous array, uint8, int8 or uint32 (N,), into what a field of such
            numbers takes.
    """

    make: Callable[..., Message]
    to_field: Callable[[np.ndarray], Any]

    def make_header(self, stamp_ns: int, frame_id: str = '') -> Message:
        """Make a std_msgs/Header of a stamp in nanoseconds."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = self.make('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
        return self.make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)

    def make_image(self, pixels: np.ndarray, encoding: str, header: Message) -> Message:
        """Make a sensor_msgs/Image without row padding.

        Args:
            pixels: (H, W) or (H, W, C), of the encoding's type, in the byte order of this machine.
            encoding: As in sensor_msgs/image_encodings.hpp.
        """
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        return self.make(
            IMAGE,
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=int(pixels.itemsize > 1 and sys.byteorder == 'big'),
            step=pixels.nbytes // height,
            data=self._bytes(pixels),
        )

    def make_compressed_label(self, label: np.ndarray, header: Message) -> Message:
        """Make a sensor_msgs/CompressedImage of uint8 (H, W), as image_transport reads it.

        PNG and never JPEG, which changes ids.
        """
        return self._make_compressed(compress_label(label), 'mono8; png compressed ', header)

    def make_compressed_picture(self, rgb: np.ndarray, header: Message) -> Message:
        """Make a sensor_msgs/CompressedImage of uint8 (H, W, 3): JPEG, as camera drivers do."""
        return self._make_compressed(compress_picture(rgb), 'rgb8; jpeg compressed bgr8', header)

    def make_points(self, points: np.ndarray, header: Message) -> Message:
        """Make an organised sensor_msgs/PointCloud2.

        Args:
            points: Structured array (H, W) of numbers, as of `messages.depth.POINT`.
        """
        height, width = points.shape
        return self.make(
            POINTS,
            header=header,
            height=height,
            width=width,
            fields=self.make_point_fields(points.dtype),
            is_bigendian=sys.byteorder == 'big',
            point_step=points.itemsize,
            row_step=points.itemsize * width,
            data=self._bytes(np.ascontiguousarray(points)),
            # Pixels without depth are not a number.
            is_dense=False,
        )

    def make_point_fields(self, dtype: np.dtype) -> list[Message]:
        """Make a sensor_msgs/PointField of each field of a structured dtype of numbers."""
        return [
            self.make(
                'sensor_msgs/msg/PointField',
                name=name,
                offset=offset,
                datatype=1 + POINT_FIELD_TYPES.index(kind.str[1:]),
                count=1,
            )
            for name, (kind, offset) in dtype.fields.items()
        ]

    def make_grid(
        self, cells: np.ndarray, cell_m: float, origin: tuple[float, float], header: Message
    ) -> Message:
        """Make a nav_msgs/OccupancyGrid.

        Args:
            cells: int8 (rows, columns), 0 to 100, -1 = unknown; rows along y, columns along x.
            cell_m: Side of a cell, metres.
            origin: x and y of the first cell's corner in the header's frame, metres.
        """
        rows, columns = cells.shape
        return self.make(
            OCCUPANCY_GRID,
            header=header,
            info=self.make(
                'nav_msgs/msg/MapMetaData',
                map_load_time=header.stamp,
                resolution=cell_m,
                width=columns,
                height=rows,
                origin=self._make_pose(*origin, 0.0),
            ),
            data=self.to_field(cells.ravel()),
        )

    def make_masks(self, picture: 'LabelledPicture') -> Message:
        """Make a cliptrase_ros/ClassMasks with the mask of every class present."""
        result, runs = picture.result, picture.regions.runs
        lengths_of_value = label_run_lengths(runs)
        instances = count_instances(picture.regions, picture.min_instance_area)
        masks = []
        for present in classes_present(result, runs):
            box, lengths = lengths_of_value[present.entry.id]
            masks.append(
                self.make(
                    'cliptrase_ros/msg/ClassMask',
                    class_id=present.entry.id,
                    class_name=present.entry.name,
                    confidence=present.confidence,
                    area=present.area,
                    instances=instances.get(present.entry.id, 0),
                    roi=self.make(
                        'sensor_msgs/msg/RegionOfInterest', **vars(box), do_rectify=False
                    ),
                    run_lengths=self.to_field(lengths),
                )
            )
        height, width = result.label.shape
        return self.make(
            CLASS_MASKS,
            header=picture.header,
            height=height,
            width=width,
            vocabulary_version=result.vocabulary.version,
            masks=masks,
        )

    def make_detections(self, picture: 'LabelledPicture') -> Message:
        """Make a vision_msgs/Detection2DArray of the instances.

        A box reaches from the left edge of its first column to the right edge of its last one, as
        a RegionOfInterest does: pixel (0, 0) has its centre at 0.5.
        """
        detections = []
        for instance, number in zip(picture.instances, picture.ids, strict=True):
            x, y, width, height = instance.box
            centre = self.make(
                'vision_msgs/msg/Pose2D',
                position=self.make('vision_msgs/msg/Point2D', x=x + width / 2, y=y + height / 2),
                theta=0.0,
            )
            detections.append(
                self.make(
                    'vision_msgs/msg/Detection2D',
                    header=picture.header,
                    results=[self._make_hypothesis(instance)],
                    bbox=self.make(
                        'vision_msgs/msg/BoundingBox2D',
                        center=centre,
                        size_x=float(width),
                        size_y=float(height),
                    ),
                    id=f'{number}',
                )
            )
        return self.make(DETECTIONS, header=picture.header, detections=detections)

    def make_detections_3d(
        self, picture: 'LabelledPicture', depth: np.ndarray, rays: np.ndarray
    ) -> Message:
        """Make a vision_msgs/Detection3DArray of the instances whose depth is known.

        Args:
            depth, rays: See `messages.boxes.box_in_space`.
        """
        detections = []
        for instance, number in zip(picture.instances, picture.ids, strict=True):
            box = box_in_space(instance, depth, rays)
            if box is None:
                continue
            centre = self._make_pose(*box.centre)
            size = dict(zip('xyz', box.size, strict=True))
            detections.append(
                self.make(
                    'vision_msgs/msg/Detection3D',
                    header=picture.header,
                    results=[self._make_hypothesis(instance, centre)],
                    bbox=self.make(
                        'vision_msgs/msg/BoundingBox3D',
                        center=centre,
                        size=self.make('geometry_msgs/msg/Vector3', **size),
                    ),
                    id=f'{number}',
                )
            )
        return self.make(DETECTIONS_3D, header=picture.header, detections=detections)

    def make_vocabulary(self, vocabulary: Vocabulary, header: Message) -> Message:
        """Make a cliptrase_ros/Vocabulary."""
        classes = []
        for entry in vocabulary.classes:
            red, green, blue = (value / 255.0 for value in entry.color)
            classes.append(
                self.make(
                    'cliptrase_ros/msg/VocabularyClass',
                    id=entry.id,
                    name=entry.name,
                    synonyms=list(entry.synonyms),
                    color=self.make('std_msgs/msg/ColorRGBA', r=red, g=green, b=blue, a=1.0),
                )
            )
        return self.make(
            VOCABULARY,
            header=header,
            version=vocabulary.version,
            classes=classes,
            background=list(vocabulary.background),
        )

    def make_label_info(self, vocabulary: Vocabulary, threshold: float, header: Message) -> Message:
        """Make a vision_msgs/LabelInfo, names by id.

        Args:
            threshold: Least confidence of a labelled pixel, 0.0 to 1.0.
        """
        classes = [
            self.make('vision_msgs/msg/VisionClass', class_id=entry.id, class_name=entry.name)
            for entry in vocabulary.classes
        ]
        return self.make(LABEL_INFO, header=header, class_map=classes, threshold=threshold)

    def _make_hypothesis(self, instance: Instance, pose: Message | None = None) -> Message:
        """Make a vision_msgs/ObjectHypothesisWithPose; without a pose it says nothing by it."""
        return self.make(
            'vision_msgs/msg/ObjectHypothesisWithPose',
            hypothesis=self.make(
                'vision_msgs/msg/ObjectHypothesis',
                class_id=instance.entry.name,
                score=instance.confidence,
            ),
            pose=self.make(
                'geometry_msgs/msg/PoseWithCovariance',
                pose=pose or self._make_pose(0.0, 0.0, 0.0),
                covariance=np.zeros(36),
            ),
        )

    def _make_pose(self, x: float, y: float, z: float) -> Message:
        return self.make(
            'geometry_msgs/msg/Pose',
            position=self.make('geometry_msgs/msg/Point', x=x, y=y, z=z),
            orientation=self.make('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0),
        )

    def _make_compressed(self, data: bytes, format: str, header: Message) -> Message:
        field = self.to_field(np.frombuffer(data, np.uint8))
        return self.make(COMPRESSED_IMAGE, header=header, format=format, data=field)

    def _bytes(self, values: np.ndarray) -> Any:
        return self.to_field(values.ravel().view(np.uint8))


@dataclass(frozen=True)
class LabelledPicture:
    """A camera's picture and what was made of it.

    Attributes:
        header: Of its message, and of everything that is made of it.
        pixels: uint8 (H, W, 3) RGB; None where no overlay is made.
        result: Its labels.
        min_instance_area: Of the smallest instance, a share of its pixels.
        track: Gives instances their ids; without it they are counted from 1.
        with_boxes: Whether instances are drawn on the overlay.
    """

    header: Message
    pixels: np.ndarray | None
    result: 'Segmentation'
    min_instance_area: float = SegmentationSettings.min_instance_area
    track: Callable[[Sequence[Instance]], Sequence[int]] | None = None
    with_boxes: bool = False

    @cached_property
    def regions(self) -> Regions:
        """Connected regions of all labels."""
        return connected_regions(self.result.label)

    @cached_property
    def instances(self) -> list[Instance]:
        """Those of classes that are large enough."""
        return find_instances(self.result, self.min_instance_area, self.regions)

    @cached_property
    def ids(self) -> Sequence[int]:
        """One for each instance."""
        return self.track(self.instances) if self.track else range(1, len(self.instances) + 1)

    @cached_property
    def overlay(self) -> np.ndarray:
        """Its overlay: uint8 (H, W, 3) RGB."""
        boxes = {'instances': self.instances, 'ids': self.ids} if self.with_boxes else {}
        return draw_overlay(self.pixels, self.result.label, self.result.vocabulary, **boxes)


#: Makes a message of a labelled picture.
MakeOutput = Callable[[MessageMaker, LabelledPicture], Message]

#: By topic below NODE/CAMERA/: the type of its messages, and the function that makes one.
CAMERA_OUTPUTS: dict[str, tuple[str, MakeOutput]] = {
    'label': (
        IMAGE,
        lambda maker, picture: maker.make_image(picture.result.label, 'mono8', picture.header),
    ),
    'label/compressed': (
        COMPRESSED_IMAGE,
        lambda maker, picture: maker.make_compressed_label(picture.result.label, picture.header),
    ),
    'confidence': (
        IMAGE,
        lambda maker, picture: maker.make_image(picture.result.confidence, 'mono8', picture.header),
    ),
    'masks': (CLASS_MASKS, MessageMaker.make_masks),
    'detections': (DETECTIONS, MessageMaker.make_detections),
    'overlay': (
        IMAGE,
        lambda maker, picture: maker.make_image(picture.overlay, 'rgb8', picture.header),
    ),
}
