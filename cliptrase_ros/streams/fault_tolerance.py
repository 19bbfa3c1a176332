"""An engine that goes on when the GPU runs out of memory or is lost, or an image fails."""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

#: Larger batches are tried again after so long without another lack of memory, seconds.
REGROWTH_S = 60.0

#: A fault counts as present for so long after it was last met, seconds.
RECENT_S = 10.0


def default_batch(segmenter: Segmenter) -> int:
    """Images a batch: 8 on a GPU; 1 on a CPU.

    On a CPU a batch takes as long as its images one by one, and the first would wait for the last.
    """
    return 1 if segmenter.device.type == 'cpu' else 8


class _Fault(Enum):
    OUT_OF_MEMORY = auto()
    LOST = auto()


@dataclass
class _Attempts:
    """What was tried in one `segment_each` against lack of memory."""

    gave_graphs_back: bool = False
    tried_again: bool = False


class FaultTolerantEngine:
    """A Segmenter for one thread that keeps labelling when its device or an image fails.

    It gives memory back and makes batches smaller, then continues on the CPU if it may. An image
    that fails costs itself alone.

    Attributes:
        largest_batch: Most images of one call at the moment.
        gave_up: The last fault of the device that cost an image its labels, None while none did.
            Elsewhere the image may well be labelled; it is not to blame.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        make_cpu_segmenter: Callable[[], Segmenter] | None = None,
        batch: int | None = None,
    ):
        """Take over a segmenter.

        Args:
            make_cpu_segmenter: Loads the same model on the CPU; None where that is not wanted.
            batch: Most images of one call; None for `default_batch`.
        """
        self.segmenter = segmenter
        self.largest_batch = batch or default_batch(segmenter)
        self.gave_up: Exception | None = None
        self._full_batch = self.largest_batch
        self._make_cpu_segmenter = make_cpu_segmenter
        self._is_on_cpu = False
        # The last vocabulary before and after its move to the CPU.
        self._cpu_vocabulary: tuple[EncodedVocabulary, EncodedVocabulary] | None = None
        self._is_kept_for_ever = False
        self._why_no_cpu = ''
        self._fault_text = ''
        self._fault_at = -float('inf')
        self._lock = threading.Lock()

    @property
    def fault(self) -> tuple[str, bool]:
        """What last went wrong with the device ('' for nothing), and whether it still matters.

        It matters for `RECENT_S`, and as long as the CPU stands in for the device.
        """
        with self._lock:
            return self._fault_text, self._is_on_cpu or time.monotonic() - self._fault_at < RECENT_S

    def encode_vocabulary(self, vocabulary: Vocabulary) -> EncodedVocabulary:
        """Encode as the segmenter does; raises what it raises where the CPU does not help."""
        tried_again = False
        while True:
            try:
                return self.segmenter.encode_vocabulary(vocabulary)
            except Exception as error:
                fault = self._handle_fault(error)
                if fault is None:
                    raise
                if fault is _Fault.OUT_OF_MEMORY and not tried_again:
                    # Retried once: memory was just given back.
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

        See `Segmenter.warm_up`; raises what that raises for a single image.
        """
        tried_again = False
        while True:
            try:
                most = min(batch, self.largest_batch)
                return self.segmenter.warm_up([size], most, self._on_device(vocabulary), settings)
            except Exception as error:
                fault = self._handle_fault(error)
                if fault is None:
                    raise
                if fault is _Fault.OUT_OF_MEMORY and not tried_again and self._give_graphs_back():
                    tried_again = True
                elif fault is _Fault.OUT_OF_MEMORY and most > 1:
                    self.largest_batch = most // 2
                elif not self._move_to_cpu():
                    raise

    def missing_calls(
        self,
        sizes: Sequence[tuple[int, int]],
        batch: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> list[tuple[tuple[int, int], int]]:
        """What to `make_ready` before labels are made so; see `Segmenter.missing_calls`."""
        most = min(batch, self.largest_batch)
        return self.segmenter.missing_calls(sizes, most, vocabulary, settings)

    def make_ready(
        self,
        size: tuple[int, int],
        count: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> None:
        """Make ready for so many images of a size in one call; see `Segmenter.make_ready`."""
        try:
            self.segmenter.make_ready(size, count, self._on_device(vocabulary), settings)
        except Exception as error:
            # On the CPU nothing has to be made ready.
            if self._handle_fault(error) is not _Fault.LOST or not self._move_to_cpu():
                raise

    def segment_each(
        self,
        images: Sequence[np.ndarray],
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
        histories: Sequence[FrameHistory | None] = (),
    ) -> list[Segmentation | Exception]:
        """Segment images in as few calls as memory allows; see `Segmenter.segment`.

        Returns:
            For each image its segmentation, or what was raised; nothing is raised here.
        """
        self._regrow()
        histories = histories or [None] * len(images)
        results: list[Segmentation | Exception] = []
        attempts = _Attempts()
        while len(results) < len(images):
            part = slice(len(results), len(results) + self.largest_batch)
            try:
                results += self.segmenter.segment(
                    images[part], self._on_device(vocabulary), settings, histories[part]
                )
            except Exception as error:
                count = len(images[part])
                fault = self._handle_fault(error)
                if fault is None and count > 1:
                    # One of them may be at fault, and must not take the others with it.
                    for image, history in zip(images[part], histories[part], strict=True):
                        results += self.segment_each([image], vocabulary, settings, [history])
                elif fault is None or not self._try_remedy(fault, count, attempts):
                    results += [error] * count
                    if fault is not None:
                        self.gave_up = error
        return results

    @contextlib.contextmanager
    def no_captures(self) -> Iterator[None]:
        """Within, what has no CUDA graph is labelled without: a capture takes as long as many."""
        calls = self.segmenter.fixed_calls
        if calls is None:
            yield
            return
        calls.may_capture = False
        try:
            yield
        finally:
            calls.may_capture = True

    def _try_remedy(self, fault: _Fault, count: int, attempts: _Attempts) -> bool:
        """Change something that may help a call of so many images; False where nothing is left."""
        if fault is _Fault.OUT_OF_MEMORY:
            if not attempts.gave_graphs_back and self._give_graphs_back():
                attempts.gave_graphs_back = True
                return True
            if count > 1:
                self.largest_batch = count // 2
                return True
            if not attempts.tried_again:
                # Retried once: memory was just given back.
                attempts.tried_again = True
                return True
        return self._move_to_cpu()

    def _handle_fault(self, error: Exception) -> _Fault | None:
        """Note what an error says about the device, and give back the memory that it holds.

        Does nothing, and returns None, where the device is not to blame.
        """
        if is_device_lost(error, self.segmenter.device):
            fault = _Fault.LOST
        elif is_out_of_memory(error):
            fault = _Fault.OUT_OF_MEMORY
        else:
            return None
        if fault is _Fault.LOST and not self._is_kept_for_ever:
            # Never freed: freeing pinned memory calls the device, which ends the process where the
            # device is lost.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.segmenter))
            self._is_kept_for_ever = True
        with self._lock:
            self._fault_text = describe(error) + self._why_no_cpu
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
        if self.largest_batch < self._full_batch and quiet_s > REGROWTH_S:
            self.largest_batch = min(2 * self.largest_batch, self._full_batch)

    def _move_to_cpu(self) -> bool:
        if self._is_on_cpu or self._make_cpu_segmenter is None:
            return False
        try:
            segmenter = self._make_cpu_segmenter()
        except Exception as error:
            # Loading takes long, and would fail for the next image as well.
            self._make_cpu_segmenter = None
            self._why_no_cpu = f'; no CPU either: {type(error).__name__}: {error}'
            with self._lock:
                self._fault_text += self._why_no_cpu
            return False
        with self._lock:
            self.segmenter, self._is_on_cpu = segmenter, True
        self.largest_batch = self._full_batch = default_batch(segmenter)
        give_memory_back()
        return True

    def _on_device(self, vocabulary: EncodedVocabulary) -> EncodedVocabulary:
        """The vocabulary where the segmenter is now; from a lost device nothing can be copied."""
        if not self._is_on_cpu or vocabulary.table.features.device == self.segmenter.device:
            return vocabulary
        if self._cpu_vocabulary is None or self._cpu_vocabulary[0] is not vocabulary:
            encoded = self.segmenter.encode_vocabulary(vocabulary.vocabulary)
            self._cpu_vocabulary = vocabulary, encoded
        return self._cpu_vocabulary[1]
