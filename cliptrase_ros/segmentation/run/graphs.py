"""The pipeline as calls of fixed shape over buffers that stay; on CUDA each is one graph.

A graph replays the kernels of one call without the processor that launched them. It is bound to
shapes and addresses: batches are cut to a few sizes, vocabularies are padded to a few sizes, and
frames, vocabulary and labels live in buffers that only change their contents. Copies between host
and device go through pinned memory and have streams of their own.
"""

import gc
import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cliptrase_ros.segmentation.device_faults import (
    describe,
    give_memory_back,
    is_out_of_memory,
    release_frames,
    whole_device,
)
from cliptrase_ros.segmentation.memo import kept_in
from cliptrase_ros.segmentation.method.smoothing import FrameHistory, HistoryKey, gather, separate
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing
from cliptrase_ros.segmentation.run.pipeline import Bounds, LabelledFrames, Pipeline
from cliptrase_ros.segmentation.settings import Method

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

    histories: of each frame, on the device, where the method smooths.
    """

    label: np.ndarray
    confidence: np.ndarray
    exact: np.ndarray
    histories: list[FrameHistory] | None = None


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

    def synchronise(self) -> None:
        """Wait for everything so far."""

    def clear(self) -> None:
        """Forget everything recorded, which must not be replayed any more."""


class CudaGraphs:
    """Captures functions as CUDA graphs, all in one memory pool, replayed on one stream.

    Nobody else may use that stream. What is started on a stream while it is captured, by whatever
    thread, becomes part of the graph; and with a graph that goes, PyTorch frees the memory in which
    cuBLAS works on the stream of its capture, although others captured there have its address (its
    issue 193402). So each has a stream of its own, see `_Streams`, and its graphs go together.
    """

    # PyTorch may not be fit for a second capture in a process in which one failed.
    _has_failed = False

    # PyTorch may ask graphs whose capture could not be ended about allocations for ever.
    _never_ended: ClassVar[deque[torch.cuda.CUDAGraph]] = deque(maxlen=8)

    def __init__(self, device: torch.device):
        self.device = device
        self.pinned = True
        self._graphs: list[torch.cuda.CUDAGraph] = []
        with whole_device:
            streams = _Streams.of(device)
            self._upload, self._download = streams.upload, streams.download
            self._compute = streams.unused.pop() if streams.unused else None
        if self._compute is not None:
            end = weakref.finalize(self, _end, self._graphs, streams.unused, self._compute)
            end.atexit = False
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the function; returns what replays it, until `clear`.

        Other threads may go on using CUDA meanwhile, but for what `whole_device` is for; with
        older PyTorch they can make no random numbers on the device.
        """
        with whole_device, torch.cuda.device(self.device):
            if CudaGraphs._has_failed:
                raise RuntimeError('an earlier capture failed in this process')
            if self._compute is None:
                raise RuntimeError('other segmenters have all streams of the device')
            # Not on the stream of the capture: so the memory in which cuBLAS works there is first
            # asked for within the capture. It then lies in the pool and stays as long as graphs
            # do, also if the thread ends with which PyTorch may free its own.
            for _ in range(_WARM_UP_RUNS):
                function()
            index = len(self._graphs)
            self._graphs.append(torch.cuda.CUDAGraph())
            try:
                self._capture(function, self._graphs[index])
            except Exception as error:
                CudaGraphs._has_failed = not is_out_of_memory(error)
                self._abandon(self._graphs[index])
                raise
        return lambda: self._graphs[index].replay()

    def _capture(self, function: Callable[[], None], graph: torch.cuda.CUDAGraph) -> None:
        with (
            _no_garbage_collection(),
            # A capture that cannot be ended leaves its stream the current one.
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._compute, capture_error_mode='thread_local'
            ),
        ):
            function()

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that failed for the allocator as well, which gives back nothing before.

        And for random numbers, of which older PyTorch makes none on the device before.
        """
        CudaGraphs._never_ended.append(graph)
        with suppress(RuntimeError):
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())
        with suppress(RuntimeError, AttributeError):
            graph.reset()
            # Raises where the capture was ended, or newer PyTorch has done so in `reset`.
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
            torch._C._cuda_releasePool(self.device.index, self._pool)

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

    def synchronise(self) -> None:
        """Wait for everything so far."""
        with whole_device:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Forget all graphs, which must not be replayed any more, and give back their memory."""
        with whole_device:
            _forget(self._graphs)
            # PyTorch takes no more graphs into a pool that all have left but something is kept in.
            self._pool = torch.cuda.graph_pool_handle()
            give_memory_back()
            empty_pinned = getattr(torch._C, '_host_emptyCache', None)
            if empty_pinned is not None:
                empty_pinned()


@dataclass
class _Streams:
    """The streams of a device: two on which everybody copies, and those to compute on.

    PyTorch has 32 and hands them out in turn, also those in use. unused: by no `CudaGraphs`.
    """

    upload: torch.cuda.Stream
    download: torch.cuda.Stream
    unused: list[torch.cuda.Stream]

    _of_devices: ClassVar[dict[torch.device, '_Streams']] = {}

    @classmethod
    def of(cls, device: torch.device) -> '_Streams':
        if device not in cls._of_devices:
            with torch.cuda.device(device):
                streams = dict.fromkeys(torch.cuda.Stream() for _ in range(32))
            upload, download, *unused = streams
            cls._of_devices[device] = cls(upload, download, unused)
        return cls._of_devices[device]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A graph freed by a thread that captures another would break that, or end the process."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _forget(graphs: list[torch.cuda.CUDAGraph]) -> None:
    for graph in graphs:
        graph.reset()
    graphs.clear()


def _end(
    graphs: list[torch.cuda.CUDAGraph],
    unused: list[torch.cuda.Stream],
    stream: torch.cuda.Stream,
) -> None:
    _forget(graphs)
    unused.append(stream)


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
                pipeline.no_history(batch, shape.framing, table)
                for batch in (1, shape.batch, shape.batch)
            )
        self._loaded: tuple[LabelTable, float] | None = None
        self._pending: Running | None = None

        # A graph replays what it has seen being made; these are made in the runs before.
        self._constants = {}

        def function() -> None:
            with kept_in(self._constants):
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
                self._after.copy_(result.history)

        #: Label the frames that are on the device, on the current stream.
        self.replay: Callable[[], None] = queue.record(function)

    def upload(self) -> None:
        """Copy the frames to the device, on the current stream."""
        self._frames.copy_(self._host_frames, non_blocking=True)

    def download(self) -> None:
        """Copy the labels to the host, on the current stream."""
        for host, buffer in zip(self._host_output, self._output.tensors, strict=True):
            host.copy_(buffer, non_blocking=True)

    def _on_host(self, tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=self._queue.pinned)

    def start(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        min_confidence: float,
        before: Sequence[FrameHistory | None] = (),
        kind: HistoryKey | None = None,
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
            self.upload()
        with self._queue.computing():
            if self._loaded is None or self._loaded[0] is not table:
                # Not what it was if this fails half-way.
                self._loaded = None
                self._table.copy_(table.padded(*self._table.size))
            if self._loaded is None or self._loaded[1] != min_confidence:
                self._min_confidence.fill_(min_confidence)
            self._loaded = table, min_confidence
            if self._before is not None:
                self._before.copy_(gather(before, kind, self._nothing))
            self.replay()
            histories = None if self._after is None else separate(self._after, kind)
        with self._queue.downloading():
            self.download()
        self._pending = Running(self._queue.finished(), self._host_output, histories)
        return self._pending


class Running:
    """Labels on their way."""

    def __init__(
        self,
        wait: Callable[[], None],
        output: tuple[Tensor, ...],
        histories: list[FrameHistory] | None,
    ):
        self._wait = wait
        self._memories = histories
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

    For one thread. queue: `CudaGraphs` or `Direct`. capacity: most calls kept ready, unless more
    are announced; the buffers of each take 5 bytes a pixel of its frames on the device,
    and as much pinned memory of the host. patience: a call is made when it has been asked for so
    often.
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
        # Sizes and numbers of frames that somebody wants to be ready, whatever the settings.
        self._announced: set[tuple[tuple[int, int], int]] = set()
        # Calls that gave way since the last time when all were given up.
        self._given_way = 0
        self._cannot_record = False

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def latest(self) -> FixedCall:
        """The call that was used last."""
        return next(reversed(self._calls.values()))

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
        self._ask(shape, self._asked.get(shape, 0) + 1)
        if self._asked[shape] < self._patience:
            return None
        return self._made(shape, table)

    def make(
        self, batch: int, framing: Framing, method: Method, table: LabelTable
    ) -> FixedCall | None:
        """The same, made if need be; None where it cannot be captured."""
        return self._made(_shape(batch, framing, method, table), table)

    def lacks(self, batch: int, framing: Framing, method: Method, table: LabelTable) -> bool:
        """Whether `make` would make one."""
        shape = _shape(batch, framing, method, table)
        return not self._cannot_record and shape not in self._calls

    def announce(self, size: tuple[int, int], batch: int) -> None:
        """Keep calls for frames of this (height, width) beside all others announced."""
        self._announced.add((size, batch))

    @property
    def served(self) -> list[tuple[tuple[int, int], int]]:
        """Size (height, width) and number of frames of each call, the latest used last."""
        return [(shape.framing.source, shape.batch) for shape in self._calls]

    def clear(self) -> None:
        """Give back the memory of all calls; none is made again before it is asked for often."""
        try:
            self.queue.synchronise()
        except RuntimeError:
            # A lost device gives nothing back, and freeing pinned memory would end the process.
            return
        self._asked.clear()
        self._calls.clear()
        self.queue.clear()
        self._given_way = 0

    def _ask(self, shape: Shape, times: int) -> None:
        self._asked[shape] = times
        self._asked.move_to_end(shape)
        while len(self._asked) > _REMEMBERED_SHAPES:
            self._asked.popitem(last=False)

    def _made(self, shape: Shape, table: LabelTable) -> FixedCall | None:
        if shape not in self._calls:
            if self._cannot_record:
                return None
            self._make_room()
            try:
                padded = table.padded(*shape.table_size)
                call = FixedCall(self._pipeline, shape, self._bounds, padded, self.queue)
            except Exception as error:
                # What there is of the call goes before the rest does.
                release_frames(error)
                if is_out_of_memory(error):
                    self.clear()
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    raise torch.OutOfMemoryError(describe(error)) from error
                # Whatever CUDA or a kernel's compiler raise: the same work runs without a graph.
                self._cannot_record = True
                _log.warning(
                    'no CUDA graph for %d frames of %d x %d; they and all others without one yet '
                    'are labelled without, slower: %s',
                    shape.batch,
                    *reversed(shape.framing.source),
                    describe(error),
                )
                return None
            self._calls[shape] = call
            self._asked.pop(shape, None)
        self._calls.move_to_end(shape)
        return self._calls[shape]

    def _make_room(self) -> None:
        # Twice: those for other words or settings are made while these are in use.
        capacity = max(self._capacity, 2 * len(self._announced))
        if len(self._calls) < capacity:
            return
        # Buffers that go may be in use. The graph stays, see `CudaGraphs`, until all go.
        self.queue.synchronise()
        self._calls.popitem(last=False)
        self._given_way += 1
        if self._given_way > capacity:
            in_use = list(self._calls)
            self.clear()
            for shape in in_use:
                # At once when it is asked for again.
                self._ask(shape, self._patience)


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
