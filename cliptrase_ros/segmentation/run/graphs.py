"""The pipeline as calls of fixed shape over buffers that stay; on CUDA each is one graph.

A graph replays the kernels of one call without the host launching them one by one. It is bound to
shapes and addresses: batches are cut into a few sizes, vocabularies are padded to a few sizes, and
frames, vocabulary and labels live in buffers of which only the contents change. Copies between host
and device go through pinned memory, on streams of their own.
"""

import gc
import logging
import math
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
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
from cliptrase_ros.segmentation.memo import reuse_constants_in
from cliptrase_ros.segmentation.method.smoothing import (
    FrameHistory,
    History,
    HistoryKey,
    split_history,
    stack_histories,
)
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing
from cliptrase_ros.segmentation.run.pipeline import Bounds, Pipeline
from cliptrase_ros.segmentation.settings import Method

#: Most frames of one call; more are labelled in several.
LARGEST_BATCH = 8

# Fewest phrases and label columns that a table is padded to.
_LEAST_TABLE = 16

# Shapes whose requests are counted at a time; the least recently requested is forgotten.
_MOST_COUNTED_SHAPES = 64

# Runs before a capture: libraries choose kernels and take their memory in the first ones.
_WARM_UP_RUNS = 3

# Bytes; no dtype has larger elements.
_ALIGNMENT = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Everything that one graph is bound to.

    Attributes:
        batch: Number of frames.
        table_size: Phrases and label columns, padding included.
        ids: Dtype of the table's class ids.
    """

    batch: int
    framing: Framing
    method: Method
    table_size: tuple[int, int]
    ids: torch.dtype
    unlabelled: int


@dataclass(frozen=True)
class HostLabels:
    """`pipeline.LabelledFrames` in host memory.

    Attributes:
        scores: Without columns that are padding; None where the method has none.
        histories: One a frame, on the device, where the method smooths; else None.
    """

    label: np.ndarray
    confidence: np.ndarray
    exact: np.ndarray
    scores: np.ndarray | None
    histories: list[FrameHistory] | None

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray], histories: list[FrameHistory] | None) -> 'HostLabels':
        """Of what `LabelledFrames.tensors` has, on the host."""
        label, confidence, exact, *scores = arrays
        return cls(label, confidence, exact, scores[0] if scores else None, histories)


class EagerQueue:
    """Stands in for a `GraphQueue` on any device: calls the function itself, without a graph."""

    pinned = False

    def __init__(self, device: torch.device):
        self.device = device

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run the function once; returns it."""
        function()
        return function

    def begin_upload(self, hands_over: bool) -> AbstractContextManager:
        """All steps are on the caller's stream."""
        return nullcontext()

    def begin_compute(self) -> None:
        """The step before is done."""

    def begin_download(self) -> None:
        """The step before is done."""

    def new_event(self) -> object:
        """Stands in for an event."""
        return None

    def record(self, event: object) -> None:
        """There is nothing to wait for."""

    def wait(self, event: object) -> None:
        """There is nothing to wait for."""

    def synchronise(self) -> None:
        """There is nothing to wait for."""

    def clear(self) -> None:
        """There is nothing to destroy."""


class GraphQueue:
    """Captures functions as CUDA graphs in one memory pool and replays them on one stream.

    Nobody else may use that stream. Whatever any thread starts on a stream during a capture becomes
    part of the graph. And when a graph is destroyed, PyTorch frees the workspace of cuBLAS for the
    stream on which it was captured, although other graphs captured there hold its address (PyTorch
    issue 193402). So each queue has a stream of its own, see `_DeviceStreams`, and all its graphs
    are destroyed together.
    """

    # After a failed capture PyTorch may not be fit for another one in the same process.
    _has_failed = False

    # Graphs whose capture could not be ended: PyTorch may go on asking them about allocations, so
    # they must not be freed.
    _never_ended: ClassVar[deque[torch.cuda.CUDAGraph]] = deque(maxlen=8)

    pinned = True

    def __init__(self, device: torch.device, spin_ms: float = 0.0):
        """Take a stream of the device.

        Args:
            spin_ms: How long `wait` polls before it sleeps.
        """
        self.device = device
        self._spin_s = spin_ms / 1e3
        # Recorded anew for every call: a stream that has begun to wait for one goes by what was
        # recorded until then.
        self._handed_over, self._uploaded, self._computed = (torch.cuda.Event() for _ in range(3))
        self._graphs: list[torch.cuda.CUDAGraph] = []
        with whole_device:
            streams = _DeviceStreams.of(device)
            self._upload, self._download = streams.upload, streams.download
            self._compute: torch.cuda.Stream | None = None
            if streams.unused:
                self._compute = streams.unused.pop()
        if self._compute is not None:
            finalizer = weakref.finalize(
                self, _release_stream, self._compute, self._graphs, streams.unused
            )
            finalizer.atexit = False
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the function; returns what replays it, until `clear`.

        Other threads may go on using CUDA meanwhile, except for what needs `whole_device`; with
        older PyTorch they cannot make random numbers on the device.

        Raises:
            torch.OutOfMemoryError: The device has too little memory.
            RuntimeError: The function cannot be captured, or nothing can any more.
        """
        if not GraphQueue._has_failed and self._compute is not None:
            # The first run compiles kernels, for which nobody else has to wait.
            with torch.cuda.device(self.device):
                function()
        with whole_device, torch.cuda.device(self.device):
            if GraphQueue._has_failed:
                raise RuntimeError('an earlier capture failed in this process')
            if self._compute is None:
                raise RuntimeError('other segmenters have all streams of the device')
            # Not on the stream of the capture, so that the workspace of cuBLAS for that stream is
            # first allocated during the capture. It then lies in the pool and stays as long as the
            # graphs do; PyTorch may free any other when the thread that made it ends.
            for _ in range(_WARM_UP_RUNS - 1):
                function()
            index = len(self._graphs)
            self._graphs.append(torch.cuda.CUDAGraph())
            try:
                self._capture_into(self._graphs[index], function)
            except Exception as error:
                GraphQueue._has_failed = not is_out_of_memory(error)
                self._abandon(self._graphs[index])
                raise
        return lambda: self._graphs[index].replay()

    def _capture_into(self, graph: torch.cuda.CUDAGraph, function: Callable[[], None]) -> None:
        with (
            _no_garbage_collection(),
            # A capture that cannot be ended leaves its stream the current one; this puts it back.
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._compute, capture_error_mode='thread_local'
            ),
        ):
            function()

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Tell PyTorch's allocator and random number generator that a failed capture has ended.

        Until then the allocator gives no memory back, and older PyTorch makes no random numbers on
        the device.
        """
        GraphQueue._never_ended.append(graph)
        with suppress(RuntimeError):
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())
        with suppress(RuntimeError, AttributeError):
            graph.reset()
            # Raises where the capture was ended, or newer PyTorch has done so in `reset`.
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
            torch._C._cuda_releasePool(self.device.index, self._pool)

    def begin_upload(self, hands_over: bool) -> AbstractContextManager:
        """Within it the stream of uploads is the current one.

        `begin_compute` and `begin_download` make theirs the current one, and leaving it restores
        the caller's.

        Args:
            hands_over: Whether the call reads tensors that the caller's stream may still be making.
        """
        assert self._compute is not None  # else nothing could be captured
        if hands_over:
            self._handed_over.record(torch.cuda.current_stream(self.device))
            self._compute.wait_event(self._handed_over)
        return torch.cuda.stream(self._upload)

    def begin_compute(self) -> None:
        """From here on vocabularies are copied and graphs replayed, after the uploads so far."""
        assert self._compute is not None
        self._uploaded.record(self._upload)
        self._compute.wait_event(self._uploaded)
        torch.cuda.set_stream(self._compute)

    def begin_download(self) -> None:
        """From here on labels are copied to the host, after what has been computed so far."""
        self._computed.record(self._compute)
        self._download.wait_event(self._computed)
        torch.cuda.set_stream(self._download)

    def new_event(self) -> torch.cuda.Event:
        """What to `record`; again only after a `wait`."""
        # Blocking: a thread that spins would take a core from the robot's other processes.
        return torch.cuda.Event(blocking=True)

    def record(self, event: torch.cuda.Event) -> None:
        """Mark the downloads so far."""
        event.record(self._download)

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the downloads that an event marks."""
        if self._spin_s:
            deadline = time.perf_counter() + self._spin_s
            while time.perf_counter() < deadline:
                if event.query():
                    return
                # Lets other threads have the interpreter.
                time.sleep(0)
        event.synchronize()

    def synchronise(self) -> None:
        """Wait for everything so far."""
        with whole_device:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Destroy all graphs, which must not be replayed any more, and give back their memory."""
        with whole_device:
            _reset_graphs(self._graphs)
            # PyTorch refuses new graphs in a pool whose graphs are gone but not all its memory.
            self._pool = torch.cuda.graph_pool_handle()
            give_memory_back()
            empty_pinned = getattr(torch._C, '_host_emptyCache', None)
            if empty_pinned is not None:
                empty_pinned()


@dataclass
class _DeviceStreams:
    """The streams of a device: two on which every queue copies, and those to compute on.

    PyTorch has 32 of them and hands them out in turn, also those in use.

    Attributes:
        unused: The streams that no `GraphQueue` computes on.
    """

    upload: torch.cuda.Stream
    download: torch.cuda.Stream
    unused: list[torch.cuda.Stream]

    _by_device: ClassVar[dict[torch.device, '_DeviceStreams']] = {}

    @classmethod
    def of(cls, device: torch.device) -> '_DeviceStreams':
        if device not in cls._by_device:
            with torch.cuda.device(device):
                streams = dict.fromkeys(torch.cuda.Stream() for _ in range(32))
            upload, download, *unused = streams
            cls._by_device[device] = cls(upload, download, unused)
        return cls._by_device[device]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep a thread that captures from freeing another graph.

    That would break the capture, or end the process.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _reset_graphs(graphs: list[torch.cuda.CUDAGraph]) -> None:
    for graph in graphs:
        graph.reset()
    graphs.clear()


def _release_stream(
    stream: torch.cuda.Stream,
    graphs: list[torch.cuda.CUDAGraph],
    unused: list[torch.cuda.Stream],
) -> None:
    """Destroy what was captured on a stream, then let others have it."""
    _reset_graphs(graphs)
    unused.append(stream)


class FixedCall:
    """The pipeline at one shape, over buffers of its own."""

    def __init__(
        self,
        pipeline: Pipeline,
        shape: Shape,
        bounds: Bounds,
        table: LabelTable,
        queue: GraphQueue | EagerQueue,
    ):
        """Allocate the buffers and capture the call.

        Args:
            table: Of any vocabulary, padded to the shape's size.
        """
        height, width = shape.framing.source
        device = queue.device
        self._queue = queue
        self._frames = torch.zeros(shape.batch, height, width, 3, dtype=torch.uint8, device=device)
        self._table = table.clone()
        self._min_confidence = torch.zeros((), device=device)
        self._host_frames = self._on_host(self._frames)
        # In one memory, so that one copy brings all of it to the host.
        self._layout = _output_layout(shape, pipeline.grid(shape.framing))
        size = sum(_room(*part) for part in self._layout)
        self._output = torch.zeros(size, dtype=torch.uint8, device=device)
        self._host_output = self._on_host(self._output)
        self._downloaded = queue.new_event()
        # For a method that smooths: the history of one frame that none precedes, the one that the
        # call reads, and the one that it writes.
        self._before: History | None = None
        if shape.method.smoothing:
            self._empty, self._before, self._after = (
                pipeline.empty_history(batch, shape.framing, table)
                for batch in (1, shape.batch, shape.batch)
            )
        # What the buffers hold: the table without its padding, and the least confidence.
        self._loaded: tuple[LabelTable, float] | None = None
        self._pending: PendingLabels | None = None

        # A graph replays the making of every tensor that it has seen made. These are made in the
        # runs before the capture, so that they are not made again at every replay.
        self._constants: dict = {}
        output = _split_output(self._output, self._layout)

        def call() -> None:
            with reuse_constants_in(self._constants):
                result = pipeline(
                    self._frames,
                    shape.framing,
                    self._table,
                    self._min_confidence,
                    shape.method,
                    bounds,
                    self._before,
                )
            for buffer, tensor in zip(output, result.tensors, strict=True):
                buffer.copy_(tensor)
            if result.history is not None:
                self._after.copy_(result.history)

        #: Label the frames that are on the device, on the current stream.
        self.replay: Callable[[], None] = queue.capture(call)

    def upload(self) -> None:
        """Copy the frames to the device, on the current stream."""
        self._frames.copy_(self._host_frames, non_blocking=True)

    def download(self) -> None:
        """Copy the labels to the host, on the current stream."""
        self._host_output.copy_(self._output, non_blocking=True)

    def _on_host(self, tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=self._queue.pinned)

    @cached_property
    def _host_arrays(self) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """The buffers on the host: frames, and what `LabelledFrames.tensors` has."""
        output = _split_output(self._host_output, self._layout)
        return self._host_frames.numpy(), tuple(tensor.numpy() for tensor in output)

    def start(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        min_confidence: float,
        histories: Sequence[FrameHistory | None] = (),
        key: HistoryKey | None = None,
    ) -> 'PendingLabels':
        """Begin to label images, as many as the shape's batch.

        Args:
            images: uint8 (H, W, 3) RGB each.
            table: Without padding.
            histories: Of the frame before each, for a method that smooths.
            key: Of these frames, for a method that smooths.
        """
        if self._pending is not None:
            # The buffers are overwritten now.
            self._pending.result()
        rows, (label, confidence, exact, *scores) = self._host_arrays
        output = (label, confidence, exact, *(maps[:, : table.size[1]] for maps in scores))
        for row, image in zip(rows, images, strict=True):
            np.copyto(row, image)
        is_loaded = self._loaded is not None and self._loaded[0] is table
        with self._queue.begin_upload(hands_over=key is not None or not is_loaded):
            self.upload()
            self._queue.begin_compute()
            self._load(table, min_confidence)
            if self._before is not None and key is not None:
                self._before.copy_(stack_histories(histories, key, self._empty))
            self.replay()
            new_histories = None if key is None else split_history(self._after, key)
            self._queue.begin_download()
            self.download()
            self._queue.record(self._downloaded)
        wait = partial(self._queue.wait, self._downloaded)
        self._pending = PendingLabels(wait, output, new_histories)
        return self._pending

    def _load(self, table: LabelTable, min_confidence: float) -> None:
        """Copy the table and the least confidence to the device, where they are not there yet."""
        loaded_table, loaded_confidence = self._loaded or (None, None)
        # Until all is copied, the buffers hold neither what they held nor what they are to hold.
        self._loaded = None
        if table is not loaded_table:
            self._table.copy_(table.padded(*self._table.size))
        if table is not loaded_table or min_confidence != loaded_confidence:
            self._min_confidence.fill_(min_confidence)
        self._loaded = table, min_confidence


def _output_layout(
    shape: Shape, grid: tuple[int, int]
) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and size of what `LabelledFrames.tensors` has; grid is of patches."""
    pixels = (shape.batch, *shape.framing.source)
    layout = [(shape.ids, pixels), (torch.uint8, pixels), (torch.bool, (shape.batch,))]
    if shape.method.scores:
        layout.append((torch.float32, (shape.batch, shape.table_size[1], *grid)))
    return layout


def _room(dtype: torch.dtype, size: tuple[int, ...]) -> int:
    """Bytes of a tensor, and up to where the next one of any dtype may begin."""
    return -(-math.prod(size) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _split_output(
    memory: Tensor, layout: Sequence[tuple[torch.dtype, tuple[int, ...]]]
) -> list[Tensor]:
    """Views of what `LabelledFrames.tensors` has."""
    parts = memory.split([_room(dtype, size) for dtype, size in layout])
    return [
        part[: math.prod(size) * dtype.itemsize].view(dtype).view(size)
        for part, (dtype, size) in zip(parts, layout, strict=True)
    ]


class PendingLabels:
    """Labels on their way to the host."""

    def __init__(
        self,
        wait: Callable[[], None],
        output: tuple[np.ndarray, ...],
        histories: list[FrameHistory] | None,
    ):
        self._wait = wait
        self._histories = histories
        self._output = output
        self._result: HostLabels | None = None

    def result(self) -> HostLabels:
        """Wait for the labels."""
        if self._result is None:
            self._wait()
            # Copied, because the buffers will hold the next labels.
            copies = [array.copy() for array in self._output]
            self._result = HostLabels.of(copies, self._histories)
        return self._result


class FixedCalls:
    """A cache of `FixedCall` by shape; the least recently used is evicted. For one thread.

    Attributes:
        may_capture: Whether `get` may; otherwise it counts no requests either.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        queue: GraphQueue | EagerQueue,
        bounds: Bounds | None = None,
        capacity: int = 16,
        patience: int = 16,
    ):
        """Make an empty cache.

        Args:
            capacity: Most calls kept, unless more are reserved. The buffers of each take 5 bytes a
                pixel of its frames on the device, and as much pinned memory of the host.
            patience: A call is captured when its shape was requested so often.
        """
        self.queue = queue
        self.may_capture = True
        self._pipeline = pipeline
        self._bounds = bounds or Bounds()
        self._capacity = capacity
        self._patience = patience
        self._requests: OrderedDict[Shape, int] = OrderedDict()
        self._calls: OrderedDict[Shape, FixedCall] = OrderedDict()
        self._reserved: set[tuple[tuple[int, int], int]] = set()
        # Since all calls were last given up together.
        self._evictions = 0
        self._cannot_capture = False

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def latest(self) -> FixedCall:
        """The call that was used last."""
        return next(reversed(self._calls.values()))

    @property
    def sizes(self) -> list[tuple[tuple[int, int], int]]:
        """Size (height, width) and number of frames of each call, the latest used last."""
        return [(shape.framing.source, shape.batch) for shape in self._calls]

    def get(
        self, batch: int, framing: Framing, method: Method, table: LabelTable
    ) -> FixedCall | None:
        """Request the call for such frames and vocabularies; None as long as there is none.

        Raises:
            torch.OutOfMemoryError: With the memory of all calls given back.
        """
        shape = _shape(batch, framing, method, table)
        if shape not in self._calls:
            if not self.may_capture:
                return None
            # Photos of many sizes would be captured more often than labelled.
            self._set_requests(shape, self._requests.get(shape, 0) + 1)
            if self._requests[shape] < self._patience:
                return None
        return self._get_or_capture(shape, table)

    def prepare(self, batch: int, framing: Framing, method: Method, table: LabelTable) -> None:
        """Capture the call for such frames and vocabularies at once, if it can be; see `get`."""
        self._get_or_capture(_shape(batch, framing, method, table), table)

    def is_missing(self, batch: int, framing: Framing, method: Method, table: LabelTable) -> bool:
        """Whether `prepare` would capture a call."""
        shape = _shape(batch, framing, method, table)
        return not self._cannot_capture and shape not in self._calls

    def reserve(self, size: tuple[int, int], batch: int) -> None:
        """Make room for calls with frames of this (height, width), beside all others reserved."""
        self._reserved.add((size, batch))

    def clear(self) -> None:
        """Give back the memory of all calls; none comes back before it is requested often again."""
        try:
            self.queue.synchronise()
        except RuntimeError:
            # A lost device gives nothing back, and freeing pinned memory would end the process.
            return
        self._requests.clear()
        self._calls.clear()
        self.queue.clear()
        self._evictions = 0

    def _set_requests(self, shape: Shape, count: int) -> None:
        self._requests[shape] = count
        self._requests.move_to_end(shape)
        while len(self._requests) > _MOST_COUNTED_SHAPES:
            self._requests.popitem(last=False)

    def _get_or_capture(self, shape: Shape, table: LabelTable) -> FixedCall | None:
        call = self._calls.get(shape)
        if call is None:
            if self._cannot_capture:
                return None
            self._make_room()
            call = self._capture(shape, table)
            if call is None:
                return None
            self._calls[shape] = call
            self._requests.pop(shape, None)
        self._calls.move_to_end(shape)
        return call

    def _capture(self, shape: Shape, table: LabelTable) -> FixedCall | None:
        """Make a call; None, and no others from now on, where it cannot be captured."""
        try:
            padded = table.padded(*shape.table_size)
            return FixedCall(self._pipeline, shape, self._bounds, padded, self.queue)
        except Exception as error:
            # What the traceback holds of the unfinished call has to go before the graphs do.
            release_frames(error)
            if is_out_of_memory(error):
                self.clear()
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise torch.OutOfMemoryError(describe(error)) from error
            # Whatever CUDA or a kernel's compiler raise: the same work runs without a graph.
            self._cannot_capture = True
            _log.warning(
                'no CUDA graph for %d frames of %d x %d; they and all others without one yet '
                'are labelled without, slower: %s',
                shape.batch,
                *reversed(shape.framing.source),
                describe(error),
            )
            return None

    def _make_room(self) -> None:
        # Twice what is reserved: calls for other words or settings are captured while those for the
        # present ones are in use.
        capacity = max(self._capacity, 2 * len(self._reserved))
        if len(self._calls) < capacity:
            return
        # The buffers that go may be in use. The graph itself stays until all go, see `GraphQueue`.
        self.queue.synchronise()
        self._calls.popitem(last=False)
        self._evictions += 1
        if self._evictions > capacity:
            in_use = list(self._calls)
            self.clear()
            for shape in in_use:
                # So that it is captured the next time it is requested.
                self._set_requests(shape, self._patience)


def batches(count: int) -> Iterator[int]:
    """Sizes of batches for so many frames: powers of two, so that few shapes serve any number."""
    size = LARGEST_BATCH
    while count:
        while size > count:
            size //= 2
        yield size
        count -= size


def _shape(batch: int, framing: Framing, method: Method, table: LabelTable) -> Shape:
    # At pixels, every phrase costs time, padding too.
    padded = _padded_length if method.softmax == 'patches' else _multiple_of_least
    rows, columns = map(padded, table.size)
    return Shape(batch, framing, method, (rows, columns), table.ids.dtype, table.unlabelled)


def _multiple_of_least(count: int) -> int:
    return -(-count // _LEAST_TABLE) * _LEAST_TABLE


def _padded_length(count: int) -> int:
    """The next power of two."""
    return max(_LEAST_TABLE, 1 << (count - 1).bit_length())
