"""An engine that goes on when the GPU runs out of memory or is lost."""

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto

import numpy as np

from cliptrase_ros.segmentation.device_faults import (
    describe,
    give_memory_back,
    is_device_lost,
    is_out_of_memory,
    release_frames,
)
from cliptrase_ros.segmentation.method.smoothing import FrameHistory
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.batches import default_batch

#: Without another lack of memory for so long, larger batches are tried again, seconds.
REGROWTH_S = 60.0

#: A fault counts as present for so long after it was met last, seconds.
RECENT_S = 10.0


class _Fault(Enum):
    OUT_OF_MEMORY = auto()
    LOST = auto()


class FaultTolerantEngine:
    """A Segmenter for one thread that labels on with smaller batches, then on the CPU if it may.

    make_cpu_segmenter: loads the same model on the CPU; None where that is not wanted. What cannot
    be labelled is told frame by frame, and nothing is raised.
    """

    def __init__(
        self, segmenter: Segmenter, make_cpu_segmenter: Callable[[], Segmenter] | None = None
    ):
        self.segmenter = segmenter
        #: Most images of one call at the moment.
        self.largest_batch = default_batch(segmenter)
        self._wanted_batch = self.largest_batch
        self._make_cpu_segmenter = make_cpu_segmenter
        self._moved: tuple[EncodedVocabulary, EncodedVocabulary] | None = None
        self._is_moved = False
        self._is_kept = False
        self._no_cpu = ''
        self._fault = ''
        self._fault_at = -float('inf')
        self._lock = threading.Lock()

    @property
    def fault(self) -> tuple[str, bool]:
        """What went wrong with the device last ('' for nothing), and whether it still matters.

        It does for `RECENT_S`, and as long as the CPU stands in for the device.
        """
        with self._lock:
            return self._fault, self._is_moved or time.monotonic() - self._fault_at < RECENT_S

    def encode_vocabulary(self, vocabulary: Vocabulary) -> EncodedVocabulary:
        """Encode as the segmenter does, and raise what it raises where the CPU does not help."""
        tried_again = False
        while True:
            try:
                return self.segmenter.encode_vocabulary(vocabulary)
            except Exception as error:
                fault = self._met_fault(error)
                if fault is None:
                    raise
                if fault is _Fault.OUT_OF_MEMORY and not tried_again:
                    # With the memory that was given back.
                    self._give_graphs_back()
                    tried_again = True
                elif not self._move_to_cpu():
                    raise

    def warm_up(
        self,
        size: tuple[int, int],
        batch: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> None:
        """Make ready for images of a size, in batches no larger than memory allows.

        size: (height, width), pixels. batch: most images at a time. Raises what the engine
        raises for one.
        """
        tried_again = False
        while True:
            try:
                most = min(batch, self.largest_batch)
                return self.segmenter.warm_up([size], most, settings, self._here(vocabulary))
            except Exception as error:
                fault = self._met_fault(error)
                if fault is None:
                    raise
                if fault is _Fault.OUT_OF_MEMORY and not tried_again and self._give_graphs_back():
                    tried_again = True
                elif fault is _Fault.OUT_OF_MEMORY and most > 1:
                    self.largest_batch = most // 2
                elif not self._move_to_cpu():
                    raise

    def unready(
        self,
        sizes: Sequence[tuple[int, int]],
        batch: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> list[tuple[tuple[int, int], int]]:
        """What to `make_ready` before labels are made with these words and settings.

        sizes: (height, width) of images to be ready for in any case, pixels, up to batch at a time.
        Returns the size and number of images of each call, to be made ready one by one.
        """
        most = min(batch, self.largest_batch)
        return self.segmenter.unready(sizes, most, settings, vocabulary)

    def make_ready(
        self,
        size: tuple[int, int],
        count: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> None:
        """Make ready for so many images of a size in one call; raises what the engine raises."""
        try:
            self.segmenter.make_ready(size, count, settings, self._here(vocabulary))
        except Exception as error:
            # On the CPU nothing has to be made ready.
            if self._met_fault(error) is not _Fault.LOST or not self._move_to_cpu():
                raise

    def segment_each(
        self,
        images: Sequence[np.ndarray],
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
        before: Sequence[FrameHistory | None] = (),
    ) -> list[Segmentation | Exception]:
        """Segment images in as few calls as memory allows.

        images: uint8 (H, W, 3) RGB each. before: see `Segmenter.segment`. Returns, for each, its
        segmentation or what was raised.
        """
        self._regrow()
        before = before or [None] * len(images)
        results: list[Segmentation | Exception] = []
        tried_again = gave_graphs_back = False
        while len(results) < len(images):
            part = slice(len(results), len(results) + self.largest_batch)
            batch, histories = images[part], [self._if_here(memory) for memory in before[part]]
            try:
                results += self.segmenter.segment(
                    batch, self._here(vocabulary), settings, histories
                )
            except Exception as error:
                fault = self._met_fault(error)
                lacks_memory = fault is _Fault.OUT_OF_MEMORY
                if fault is None:
                    # One of them may be at fault, and must not take the others with it.
                    results += self._one_by_one(batch, vocabulary, settings, histories, error)
                elif lacks_memory and not gave_graphs_back and self._give_graphs_back():
                    # The same batch again: without graphs it may fit.
                    gave_graphs_back = True
                elif lacks_memory and len(batch) > 1:
                    self.largest_batch = len(batch) // 2
                elif lacks_memory and not tried_again:
                    # With the memory that was given back.
                    tried_again = True
                elif not self._move_to_cpu():
                    results += [error] * len(batch)
        return results

    def _one_by_one(
        self, batch, vocabulary, settings, histories, error
    ) -> list[Segmentation | Exception]:
        if len(batch) == 1:
            return [error]
        return [
            self.segment_each([image], vocabulary, settings, [memory])[0]
            for image, memory in zip(batch, histories, strict=True)
        ]

    def _met_fault(self, error: Exception) -> _Fault | None:
        """What an error says about the device; None where the device is not to blame."""
        if is_device_lost(error, self.segmenter.device):
            fault = _Fault.LOST
        elif is_out_of_memory(error):
            fault = _Fault.OUT_OF_MEMORY
        else:
            return None
        if fault is _Fault.LOST and not self._is_kept:
            # Never freed: pinned memory that goes tells the device so, and on a lost one that
            # ends the process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.segmenter))
            self._is_kept = True
        with self._lock:
            self._fault = describe(error) + self._no_cpu
            self._fault_at = time.monotonic()
        release_frames(error)
        give_memory_back()
        return fault

    def _give_graphs_back(self) -> bool:
        """Give back the memory of CUDA graphs; returns whether there may have been any."""
        if self.segmenter.fixed_calls is None:
            return False
        self.segmenter.fixed_calls.clear()
        return True

    def _regrow(self) -> None:
        quiet_s = time.monotonic() - self._fault_at
        if self.largest_batch < self._wanted_batch and quiet_s > REGROWTH_S:
            self.largest_batch = min(2 * self.largest_batch, self._wanted_batch)

    def _move_to_cpu(self) -> bool:
        if self._is_moved or self._make_cpu_segmenter is None:
            return False
        try:
            segmenter = self._make_cpu_segmenter()
        except Exception as error:
            # Loading takes long, and would fail for the next image as well.
            self._make_cpu_segmenter = None
            self._no_cpu = f'; no CPU either: {type(error).__name__}: {error}'
            with self._lock:
                self._fault += self._no_cpu
            return False
        with self._lock:
            self.segmenter, self._is_moved = segmenter, True
        self.largest_batch = self._wanted_batch = default_batch(segmenter)
        give_memory_back()
        return True

    def _here(self, vocabulary: EncodedVocabulary) -> EncodedVocabulary:
        """The vocabulary where the segmenter is now; a lost device gives nothing back."""
        if not self._is_moved or vocabulary.table.features.device == self.segmenter.device:
            return vocabulary
        if self._moved is None or self._moved[0] is not vocabulary:
            self._moved = vocabulary, self.segmenter.encode_vocabulary(vocabulary.vocabulary)
        return self._moved[1]

    def _if_here(self, memory: FrameHistory | None) -> FrameHistory | None:
        if memory is None or memory.history.probability.device != self.segmenter.device:
            return None
        return memory
