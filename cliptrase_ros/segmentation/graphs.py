"""The pipeline as calls of fixed shape over buffers that stay; on CUDA each is one graph.

A graph replays the kernels of one call without the processor that launched them. It is bound to
shapes and addresses: batches are cut to a few sizes, vocabularies are padded to a few sizes, and
frames, vocabulary and labels live in buffers that only change their contents. Copies between host
and device go through pinned memory and have streams of their own.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .label_table import LabelTable
from .method import Method
from .pipeline import Bounds, LabelledFrames, Pipeline
from .preprocessing import Framing
from .smoothing import FrameMemory, Kind, gather, separate

#: Most frames of one call; more are labelled in several.
LARGEST_BATCH = 8

# The least phrases and columns a table is padded to.
_LEAST_TABLE = 16

# Shapes of which it is counted how often they come.
_REMEMBERED_SHAPES = 64

# Runs before a capture: libraries choose kernels and take their memory in the first ones.
_WARM_UP_RUNS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What one call is for.

    table_size: phrases and columns, padding included. ids, unlabelled: the table's kind of ids.
    """

    batch: int
    framing: Framing
    method: Method
    table_size: tuple[int, int]
    ids: torch.dtype
    unlabelled: int


@dataclass(frozen=True)
class HostLabels:
    """B frames labelled, in host memory: as `pipeline.LabelledFrames`.

    memories: of each frame, on the device, where the method smooths.
    """

    label: np.ndarray
    confidence: np.ndarray
    exact: np.ndarray
    memories: list[FrameMemory] | None = None


class Direct:
    """Calls the function itself: what graphs do, without a graph, on any device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pinned = False

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run the function once; returns it."""
        function()
        return function

    def uploading(self) -> AbstractContextManager:
        """Where frames are copied to the device."""
        return nullcontext()

    def computing(self) -> AbstractContextManager:
        """Where vocabularies are copied and the function runs; after the uploads so far."""
        return nullcontext()

    def downloading(self) -> AbstractContextManager:
        """Where labels are copied to the host; after what has been computed so far."""
        return nullcontext()

    def finished(self) -> Callable[[], None]:
        """A function that waits for the downloads so far."""
        return lambda: None


class CudaGraphs:
    """Captures functions as CUDA graphs, all in one memory pool, replayed on one stream."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pinned = True
        with torch.cuda.device(device):
            self._upload, self._compute, self._download = (torch.cuda.Stream() for _ in range(3))
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the function; returns what replays it.

        Other threads may go on using CUDA meanwhile.
        """
        with torch.cuda.device(self.device):
            self._compute.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._compute):
                for _ in range(_WARM_UP_RUNS):
                    function()
            self._compute.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._compute, capture_error_mode='thread_local'
            ):
                function()
        return graph.replay

    def uploading(self) -> AbstractContextManager:
        """Where frames are copied to the device."""
        return torch.cuda.stream(self._upload)

    def computing(self) -> AbstractContextManager:
        """Where vocabularies are copied and the function runs; after the uploads so far."""
        self._compute.wait_stream(self._upload)
        self._compute.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self._compute)

    def downloading(self) -> AbstractContextManager:
        """Where labels are copied to the host; after what has been computed so far."""
        self._download.wait_stream(self._compute)
        return torch.cuda.stream(self._download)

    def finished(self) -> Callable[[], None]:
        """A function that waits for the downloads so far."""
        # Blocking: a thread that spins would take a core from the robot's other processes.
        event = torch.cuda.Event(blocking=True)
        event.record(self._download)
        return event.synchronize


class FixedCall:
    """One call of the pipeline at one shape, over buffers of its own."""

    def __init__(
        self,
        pipeline: Pipeline,
        shape: Shape,
        bounds: Bounds,
        table: LabelTable,
        queue: CudaGraphs | Direct,
    ):
        """table: any vocabulary's of the shape's size, padded."""
        height, width = shape.framing.source
        device = queue.device
        self._queue = queue
        self._frames = torch.zeros(shape.batch, height, width, 3, dtype=torch.uint8, device=device)
        self._table = table.clone()
        self._min_confidence = torch.zeros((), device=device)
        self._output = LabelledFrames(
            torch.zeros(shape.batch, height, width, dtype=shape.ids, device=device),
            torch.zeros(shape.batch, height, width, dtype=torch.uint8, device=device),
            torch.zeros(shape.batch, dtype=torch.bool, device=device),
        )
        self._host_frames = self._on_host(self._frames)
        self._host_output = tuple(map(self._on_host, self._output.tensors))
        self._nothing = self._before = self._after = None
        if shape.method.smoothing:
            self._nothing, self._before, self._after = (
                pipeline.no_memory(batch, shape.framing, table)
                for batch in (1, shape.batch, shape.batch)
            )
        self._loaded: tuple[LabelTable, float] | None = None
        self._pending: Running | None = None

        def function() -> None:
            result = pipeline(
                self._frames,
                shape.framing,
                self._table,
                self._min_confidence,
                shape.method,
                bounds,
                self._before,
            )
            for buffer, tensor in zip(self._output.tensors, result.tensors, strict=True):
                buffer.copy_(tensor)
            if self._after is not None:
                self._after.copy_(result.memory)

        self._run = queue.record(function)

    def _on_host(self, tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=self._queue.pinned)

    def start(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        min_confidence: float,
        before: Sequence[FrameMemory | None] = (),
        kind: Kind | None = None,
    ) -> 'Running':
        """Begin to label as many images as the shape's batch.

        table: without padding. before: of the frame before each, for a method that smooths, and
        kind: of these frames; see `smoothing.gather`.
        """
        if self._pending is not None:
            self._pending.result()
        for row, image in zip(self._host_frames.numpy(), images, strict=True):
            np.copyto(row, image)
        with self._queue.uploading():
            self._frames.copy_(self._host_frames, non_blocking=True)
        with self._queue.computing():
            if self._loaded is None or self._loaded[0] is not table:
                self._table.copy_(table.padded(*self._table.size))
            if self._loaded is None or self._loaded[1] != min_confidence:
                self._min_confidence.fill_(min_confidence)
            self._loaded = table, min_confidence
            if self._before is not None:
                self._before.copy_(gather(before, kind, self._nothing))
            self._run()
            memories = None if self._after is None else separate(self._after, kind)
        with self._queue.downloading():
            for host, buffer in zip(self._host_output, self._output.tensors, strict=True):
                host.copy_(buffer, non_blocking=True)
        self._pending = Running(self._queue.finished(), self._host_output, memories)
        return self._pending


class Running:
    """Labels on their way."""

    def __init__(
        self,
        wait: Callable[[], None],
        output: tuple[Tensor, ...],
        memories: list[FrameMemory] | None,
    ):
        self._wait = wait
        self._memories = memories
        self._output = output
        self._result: HostLabels | None = None

    def result(self) -> HostLabels:
        """Wait for the labels."""
        if self._result is None:
            self._wait()
            # Copied: the buffers will hold the next labels.
            arrays = (tensor.numpy().copy() for tensor in self._output)
            self._result = HostLabels(*arrays, self._memories)
        return self._result


class FixedCalls:
    """Calls by shape, made when one is asked for often; the least recently used gives way.

    For one thread. queue: `CudaGraphs` or `Direct`. capacity: most calls kept ready; their buffers
    are some megabytes each. patience: a call is made when it has been asked for so often.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        queue: CudaGraphs | Direct,
        bounds: Bounds | None = None,
        capacity: int = 16,
        patience: int = 16,
    ):
        self._pipeline = pipeline
        self.queue = queue
        self._bounds = bounds or Bounds()
        self._capacity = capacity
        self._patience = patience
        self._asked: OrderedDict[Shape, int] = OrderedDict()
        self._calls: OrderedDict[Shape, FixedCall] = OrderedDict()
        self._refused: set[Shape] = set()

    def __len__(self) -> int:
        return len(self._calls)

    def get(
        self, batch: int, framing: Framing, method: Method, table: LabelTable
    ) -> FixedCall | None:
        """The call for such frames and vocabularies; None as long as there is none.

        Raises torch.OutOfMemoryError, with the memory of all calls given back.
        """
        shape = _shape(batch, framing, method, table)
        if shape in self._calls:
            self._calls.move_to_end(shape)
            return self._calls[shape]
        # Photos of many sizes would be captured more often than labelled.
        self._asked[shape] = self._asked.pop(shape, 0) + 1
        while len(self._asked) > _REMEMBERED_SHAPES:
            self._asked.popitem(last=False)
        if self._asked[shape] < self._patience:
            return None
        return self.make(batch, framing, method, table)

    def make(
        self, batch: int, framing: Framing, method: Method, table: LabelTable
    ) -> FixedCall | None:
        """The same, made if need be; None where it cannot be captured."""
        shape = _shape(batch, framing, method, table)
        if shape in self._refused:
            return None
        if shape not in self._calls:
            while len(self._calls) >= self._capacity:
                self._calls.popitem(last=False)
            try:
                padded = table.padded(*shape.table_size)
                call = FixedCall(self._pipeline, shape, self._bounds, padded, self.queue)
            except torch.OutOfMemoryError:
                self.clear()
                raise
            except Exception as error:
                # Whatever CUDA or a kernel's compiler raise: the same work runs without a graph.
                self._refused.add(shape)
                _log.warning(
                    'no CUDA graph for %d frames of %d x %d, which are labelled without one, '
                    'slower: %s: %s',
                    batch,
                    *reversed(framing.source),
                    type(error).__name__,
                    str(error).partition('\n')[0],
                )
                return None
            self._calls[shape] = call
            self._asked.pop(shape, None)
        self._calls.move_to_end(shape)
        return self._calls[shape]

    def clear(self) -> None:
        """Give back the memory of all calls."""
        self._calls.clear()
        if self.queue.device.type == 'cuda':
            torch.cuda.empty_cache()


def batches(count: int) -> Iterator[int]:
    """Sizes of batches for so many frames: powers of two, so that few shapes serve any number."""
    size = LARGEST_BATCH
    while count:
        while size > count:
            size //= 2
        yield size
        count -= size


def _shape(batch: int, framing: Framing, method: Method, table: LabelTable) -> Shape:
    size = tuple(map(_bucket, table.size))
    return Shape(batch, framing, method, size, table.ids.dtype, table.unlabelled)


def _bucket(count: int) -> int:
    return max(_LEAST_TABLE, 1 << (count - 1).bit_length())
