"""Class probabilities that do not flicker: each patch remembers what it looked like and was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.model.preprocessing import Framing
from cliptrase_ros.segmentation.settings import Method

# Root mean square differences of colours 0..1: of a patch from one before, at which it no longer
# passes for that one, above a camera's noise and below most edges; and between candidates, of
# which the more alike then counts alone.
_SAME_COLOUR = 0.05
_TELLING_COLOUR = 0.03
# Patches around its own place among which a patch is looked for in the frame before.
_REACH = 2
# A frame whose patches resemble those before less than this, on average, is of another scene.
_SAME_SCENE = 0.2
# Colours are compared in cells, a few to a patch: texture counts, noise does not.
_CELLS_PER_PATCH = 2


@dataclass(frozen=True)
class History:
    """What is kept of B frames, each of another camera, for those that follow.

    probability: float32 (B, C, h, w), smoothed. appearance: float32 (B, A, h, w), colours 0..1.
    known: bool (B,); where False there was no frame before.
    """

    probability: Tensor
    appearance: Tensor
    known: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.probability, self.appearance, self.known

    def copy_(self, other: 'History') -> None:
        """Take over the contents of a memory of the same size, in place."""
        for buffer, tensor in zip(self.tensors, other.tensors, strict=True):
            buffer.copy_(tensor)


@dataclass(frozen=True)
class HistoryKey:
    """What frames have to have in common for one's memory to serve the other.

    words: of their table, see `LabelTable.words_digest`. device: where they are labelled.
    """

    words: str
    framing: Framing
    method: Method
    device: torch.device


@dataclass(frozen=True)
class FrameHistory:
    """The memory of one frame, a batch of 1, and the kind of frame it was."""

    history: History
    kind: HistoryKey


def no_history(columns: int, grid: tuple[int, int], batch: int, device: torch.device) -> History:
    """What precedes the first of B frames."""
    cells = 3 * _CELLS_PER_PATCH**2
    return History(
        torch.zeros(batch, columns, *grid, device=device),
        torch.zeros(batch, cells, *grid, device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
    )


def gather(before: Sequence[FrameHistory | None], kind: HistoryKey, nothing: History) -> History:
    """Memories of a batch from those of its frames.

    before: of each frame; None, or one of another kind, for a frame that nothing precedes.
    nothing: of a batch of 1, with as many columns as the result is to have.
    """
    chosen = []
    for one in before:
        if one is None or one.kind != kind:
            chosen.append(nothing)
            continue
        # Vocabularies are padded in some calls and not in others.
        more = nothing.probability.shape[1] - one.history.probability.shape[1]
        chosen.append(
            replace(one.history, probability=F.pad(one.history.probability, (0, 0, 0, 0, 0, more)))
        )
    return History(
        *(torch.cat(tensors) for tensors in zip(*(m.tensors for m in chosen), strict=True))
    )


def separate(memory: History, kind: HistoryKey) -> list[FrameHistory]:
    """The memory of each frame of a batch, in tensors of its own."""
    return [
        FrameHistory(History(*(tensor[i : i + 1].clone() for tensor in memory.tensors)), kind)
        for i in range(len(memory.known))
    ]


def smooth(
    probability: Tensor, picture: Tensor, before: History, strength: float
) -> tuple[Tensor, History]:
    """Blend each patch's probabilities with those of the patches before that look like it.

    Nothing is kept of what has moved away or changed, so labels do not lag; nothing at all of a
    frame of another scene. Sizes must agree. Nothing waits for the device.

    probability: float32 (B, C, h, w). picture: uint8 (B, 3, H, W). strength: 0..1, share of what
    was before where nothing has changed.
    Returns the blend and the memory for the next frames.
    """
    grid = probability.shape[-2:]
    cells = [side * _CELLS_PER_PATCH for side in grid]
    appearance = F.pixel_unshuffle(
        F.interpolate(picture.float() / 255, size=cells, mode='area'), _CELLS_PER_PATCH
    )
    # What is contiguous comes first, and the results are laid out as it is.
    distance = (appearance[:, :, None, None] - _neighbours(before.appearance)).square().mean(1) / 2
    weight = (-distance / _TELLING_COLOUR**2).flatten(1, 2).softmax(1).view_as(distance)
    remembered = (weight[:, None] * _neighbours(before.probability)).sum((2, 3))

    resemblance = (-distance.amin((1, 2)) / _SAME_COLOUR**2).exp()
    same_scene = before.known & (resemblance.mean((1, 2)) > _SAME_SCENE)
    blend = strength * resemblance * same_scene[:, None, None]
    smoothed = torch.lerp(probability, remembered, blend[:, None])
    return smoothed, History(smoothed, appearance, torch.ones_like(before.known))


def _neighbours(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, C, K, K, h, w): the maps seen from each of K x K places around a patch.

    A view of the padded maps.
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, [_REACH] * 4, mode='replicate')
    return padded.unfold(2, height, 1).unfold(3, width, 1)
