"""The node's messages, as they stand in a bag."""

import numpy as np
from rosbags.typesys.store import Typestore

from cliptrase_ros.bag.types import CLASS_MASKS, IMAGE, LABEL_INFO, VOCABULARY
from cliptrase_ros.messages.images import label_run_lengths
from cliptrase_ros.segmentation.run_lengths import find_runs
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import Vocabulary


class MessageMaker:
    """Makes the node's messages, serialised.

    header: of a message of the same typestore; it is used unchanged.
    """

    def __init__(self, typestore: Typestore):
        self._store = typestore

    def header(self, stamp_ns: int, frame_id: str = ''):
        """Make a std_msgs/Header. stamp_ns: nanoseconds."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        time = self._make('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
        return self._make('std_msgs/msg/Header', stamp=time, frame_id=frame_id)

    def image(self, pixels: np.ndarray, encoding: str, header) -> memoryview:
        """sensor_msgs/Image without row padding, serialised.

        pixels: uint8 (H, W) or (H, W, C).
        """
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        message = self._make(
            IMAGE,
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=pixels.nbytes // height,
            data=pixels.ravel(),
        )
        return self._serialise(message)

    def masks(self, segmentation: Segmentation, header) -> memoryview:
        """cliptrase_ros/ClassMasks of every class present, serialised."""
        masks = []
        runs = find_runs(segmentation.label)
        of_class = label_run_lengths(runs)
        for present in classes_present(segmentation, runs):
            box, lengths = of_class[present.entry.id]
            masks.append(
                self._make(
                    'cliptrase_ros/msg/ClassMask',
                    class_id=present.entry.id,
                    class_name=present.entry.name,
                    confidence=present.confidence,
                    area=present.area,
                    roi=self._make(
                        'sensor_msgs/msg/RegionOfInterest',
                        x_offset=box.x_offset,
                        y_offset=box.y_offset,
                        height=box.height,
                        width=box.width,
                        do_rectify=False,
                    ),
                    run_lengths=lengths,
                )
            )
        height, width = segmentation.label.shape
        message = self._make(
            CLASS_MASKS,
            header=header,
            height=height,
            width=width,
            vocabulary_version=segmentation.vocabulary.version,
            masks=masks,
        )
        return self._serialise(message)

    def label_info(self, vocabulary: Vocabulary, threshold: float, header) -> memoryview:
        """vision_msgs/LabelInfo, serialised. threshold: least confidence, 0..1."""
        classes = [
            self._make('vision_msgs/msg/VisionClass', class_id=c.id, class_name=c.name)
            for c in vocabulary.classes
        ]
        return self._serialise(
            self._make(LABEL_INFO, header=header, class_map=classes, threshold=threshold)
        )

    def vocabulary(self, vocabulary: Vocabulary, header) -> memoryview:
        """cliptrase_ros/Vocabulary, serialised."""
        classes = [
            self._make(
                'cliptrase_ros/msg/VocabularyClass',
                id=c.id,
                name=c.name,
                synonyms=list(c.synonyms),
                color=self._make(
                    'std_msgs/msg/ColorRGBA',
                    **dict(zip('rgb', (value / 255.0 for value in c.color), strict=True)),
                    a=1.0,
                ),
            )
            for c in vocabulary.classes
        ]
        return self._serialise(
            self._make(
                VOCABULARY,
                header=header,
                version=vocabulary.version,
                classes=classes,
                background=list(vocabulary.background),
            )
        )

    def _make(self, message_type: str, **fields):
        return self._store.types[message_type](**fields)

    def _serialise(self, message) -> memoryview:
        return self._store.serialize_cdr(message, message.__msgtype__)
