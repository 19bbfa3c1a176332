"""The segmentation node around an engine that needs no weights, chosen by ENGINE.

random: a ViT-B/16 of random weights, as slow as one that is trained. none: labels that are made
once, so that what the process computes is the node's own. timed: the same after the milliseconds
that ENGINE_MS says, those of a call and those of each of up to 8 images in it, without the GIL and
the CPU, as on a GPU; the node then answers each line of standard input (see node_parts.py).
"""

import functools
import os
import sys
import time

import cv2
import numpy as np
import open_clip
import torch
from node_parts import watch_parts

from cliptrase_ros.ros import segment_node
from cliptrase_ros.ros.executable import run_node
from cliptrase_ros.ros.segment_node import SegmentNode
from cliptrase_ros.ros.settings import NODE_NAME
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.process_settings import limit_threads, threads_beside_others
from cliptrase_ros.segmentation.segmenter import Segmentation, Segmenter
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.unused_memory import share_memory_between_threads

ARCHITECTURE = 'ViT-B-16-quickgelu'


class InstantSegmenter(Segmenter):
    """Answers at once with labels that are the same for all images of a size."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self._cache = {}

    def segment(self, images, vocabulary, settings=None, histories=()):
        """Return smooth regions of every class."""
        return [self._regions(image.shape[:2], vocabulary.vocabulary) for image in images]

    def _regions(self, size, vocabulary) -> Segmentation:
        key = size, vocabulary.version
        if key not in self._cache:
            rng = np.random.default_rng(0)
            # As fine as the patches of a frame at 336 pixels.
            fields = rng.normal(size=(21, 28, len(vocabulary.classes))).astype(np.float32)
            fields = cv2.GaussianBlur(fields, (0, 0), 1.5)
            fields = cv2.resize(fields, size[::-1], interpolation=cv2.INTER_LINEAR)
            label = vocabulary.ids[fields.argmax(-1)]
            confidence = cv2.normalize(fields.max(-1), None, 0, 255, cv2.NORM_MINMAX)
            self._cache[key] = Segmentation(label, confidence.astype(np.uint8), vocabulary)
        return self._cache[key]


class TimedSegmenter(InstantSegmenter):
    """Takes the time that a GPU would take."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self._call_ms, self._image_ms = map(float, os.environ['ENGINE_MS'].split())

    def segment(self, images, vocabulary, settings=None, histories=()):
        """Wait, then return smooth regions of every class."""
        time.sleep(1e-3 * (self._call_ms + self._image_ms * len(images)))
        return super().segment(images, vocabulary, settings, histories)


def make_segmenter(kind: type[Segmenter]) -> Segmenter:
    """Make a ViT-B/16 with random weights; one that does not use them gets few layers."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(ARCHITECTURE)
    if issubclass(kind, InstantSegmenter):
        for part in ('vision_cfg', 'text_cfg'):
            config[part]['layers'] = 3
    loaded = LoadedModel(
        open_clip.CLIP(**config),
        open_clip.get_tokenizer(ARCHITECTURE),
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
        f'{ARCHITECTURE} (random weights)',
    )
    return kind(loaded)


def main() -> int:
    """Run the node."""
    # What the node itself does where it loads a model.
    share_memory_between_threads()
    limit_threads(threads_beside_others())
    kinds = {'random': Segmenter, 'none': InstantSegmenter, 'timed': TimedSegmenter}
    kind = kinds[os.environ['ENGINE']]
    segmenter = make_segmenter(kind)
    if kind is TimedSegmenter:
        # As on a GPU; the weights are on a CPU, where a batch would be a single image.
        segment_node.FaultTolerantEngine = functools.partial(FaultTolerantEngine, batch=8)
        watch_parts()
    return run_node(lambda: SegmentNode(segmenter), NODE_NAME, None)


if __name__ == '__main__':
    sys.exit(main())
