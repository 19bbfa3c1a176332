"""Class probabilities that do not flicker: patches that look as before stay what they were."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.model.preprocessing import Framing
from cliptrase_ros.segmentation.settings import Method

#: Root mean square difference of colours (0..1) at which a patch no longer passes for an earlier
#: one: above a camera's noise, below most edges.
SAME_COLOUR = 0.05
#: The same, by which one of several earlier patches has to look more alike to count alone.
TELLING_COLOUR = 0.03
#: How far around its own place a patch is looked for in the frame before, patches.
REACH = 2
#: A frame whose patches resemble the earlier ones less than this, on average, shows another scene.
SAME_SCENE = 0.2
#: Colours are compared in so many cells a side of a patch: texture counts, noise does not.
CELLS_PER_PATCH = 2


@dataclass(frozen=True)
class History:
    """What is kept of B frames, each of another camera, for those that follow.

    Attributes:
        probability: float32 (B, C, h, w), class probabilities of patches, smoothed.
        appearance: float32 (B, A, h, w), colours 0..1 of the cells of each patch.
        known: bool (B,); False where no frame came before.
    """

    probability: Tensor
    appearance: Tensor
    known: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.probability, self.appearance, self.known

    def copy_(self, other: 'History') -> None:
        """Take over the contents of a history of the same size, in place."""
        for buffer, tensor in zip(self.tensors, other.tensors, strict=True):
            buffer.copy_(tensor)


@dataclass(frozen=True)
class HistoryKey:
    """What two frames need to have in common for the history of one to serve the other.

    Attributes:
        words: Digest of the words, see `LabelTable.words_digest`.
    """

    words: str
    framing: Framing
    method: Method
    device: torch.device


@dataclass(frozen=True)
class FrameHistory:
    """The history of one frame (a batch of 1), and which frames it can serve."""

    history: History
    key: HistoryKey


def empty_history(columns: int, grid: tuple[int, int], batch: int, device: torch.device) -> History:
    """The history that the first frame of a camera gets; columns are label columns."""
    cells = 3 * CELLS_PER_PATCH**2
    return History(
        torch.zeros(batch, columns, *grid, device=device),
        torch.zeros(batch, cells, *grid, device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
    )


def stack_histories(
    histories: Sequence[FrameHistory | None], key: HistoryKey, empty: History
) -> History:
    """Make the history of a batch from those of its frames.

    Args:
        histories: One a frame; None, or one with another key, counts as `empty`.
        key: Of the frames of the batch.
        empty: A batch of 1, with as many columns as the result is to have.
    """
    columns = empty.probability.shape[1]
    chosen = [
        _padded(entry.history, columns) if entry is not None and entry.key == key else empty
        for entry in histories
    ]
    return History(
        *(torch.cat(tensors) for tensors in zip(*(h.tensors for h in chosen), strict=True))
    )


def _padded(history: History, columns: int) -> History:
    """The same with more columns: vocabularies are padded in some calls and not in others."""
    missing = columns - history.probability.shape[1]
    return replace(history, probability=F.pad(history.probability, (0, 0, 0, 0, 0, missing)))


def split_history(history: History, key: HistoryKey) -> list[FrameHistory]:
    """The history of each frame of a batch, in tensors of its own."""
    return [
        FrameHistory(History(*(tensor[i : i + 1].clone() for tensor in history.tensors)), key)
        for i in range(len(history.known))
    ]


def smooth(
    probability: Tensor, picture: Tensor, history: History, strength: float
) -> tuple[Tensor, History]:
    """Blend the probabilities of each patch with those of earlier patches that look like it.

    Nothing is kept of what has moved away or changed, so labels do not lag behind, and nothing at
    all of a frame of another scene. Nothing here waits for the device.

    Args:
        probability: float32 (B, C, h, w), of these frames.
        picture: uint8 (B, 3, H, W), what the network sees of them.
        history: Of the frames before, of the same sizes.
        strength: 0..1; share of the earlier probabilities where nothing has changed.

    Returns:
        The blend, and the history for the next frames.
    """
    appearance, weights, resemblance = _compare(picture, history.appearance)
    smoothed = _blend(
        probability, history.probability, weights, resemblance, history.known, strength
    )
    return smoothed, History(smoothed, appearance, torch.ones_like(history.known))


@on_cuda_by('smoothing_kernels')
def _compare(picture: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much patches look like earlier ones around the same place.

    Args:
        picture: uint8 (B, 3, H, W).
        earlier: float32 (B, A, h, w), see `History.appearance`.

    Returns:
        The appearance of the patches, float32 (B, A, h, w); how much each of K x K earlier patches
        counts for one, float32 (B, K, K, h, w), with the sum 1; and the resemblance to the most
        alike of them, float32 (B, h, w), 0..1.
    """
    cells = [side * CELLS_PER_PATCH for side in earlier.shape[-2:]]
    appearance = F.pixel_unshuffle(
        F.interpolate(picture.float() / 255, size=cells, mode='area'), CELLS_PER_PATCH
    )
    # The contiguous operand comes first, because results take its memory layout.
    distance = (appearance[:, :, None, None] - _neighbours(earlier)).square().mean(1) / 2
    weights = (-distance / TELLING_COLOUR**2).flatten(1, 2).softmax(1).view_as(distance)
    resemblance = (-distance.amin((1, 2)) / SAME_COLOUR**2).exp()
    return appearance, weights, resemblance


@on_cuda_by('smoothing_kernels')
def _blend(
    probability: Tensor,
    earlier: Tensor,
    weights: Tensor,
    resemblance: Tensor,
    known: Tensor,
    strength: float,
) -> Tensor:
    """Blend probabilities with earlier ones, both float32 (B, C, h, w), in images of one scene.

    Args:
        weights: From `_compare`, as `resemblance`.
        known: bool (B,), see `History`.
        strength: See `smooth`.
    """
    expected = (weights[:, None] * _neighbours(earlier)).sum((2, 3))
    same_scene = known & (resemblance.mean((1, 2)) > SAME_SCENE)
    blend = strength * resemblance * same_scene[:, None, None]
    return torch.lerp(probability, expected, blend[:, None])


def _neighbours(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, C, K, K, h, w): the maps seen from each of K x K places around a patch.

    A view of the padded maps.
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, [REACH] * 4, mode='replicate')
    return padded.unfold(2, height, 1).unfold(3, width, 1)
