"""The label columns of a vocabulary as tensors, of a size that may be padded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.model.text_cache import fingerprint

#: Stands for the cosine of a column that no phrase belongs to: finite, because interpolation
#: multiplies it by zero.
NO_COSINE = -1e4


@dataclass(frozen=True)
class LabelTable:
    """How patch features become label columns, and label columns become class ids.

    P phrases make C columns: one a class, in order, then one for each background phrase, then
    padding. A label is a column's number; `foreground` stands for every background column.

    Attributes:
        features: float32 (P, D), unit length.
        columns: int64 (P,), each phrase's column; of one column's phrases the largest cosine
            counts. A padding phrase has column C.
        foreground: int64 (), number of classes.
        used: int64 (), number of columns that are no padding.
        ids: integers (C + 1,), the class id of each label up to `foreground`.
        unlabelled: The id of pixels without a label.
        logit_scale: The factor on cosines.
    """

    features: Tensor
    columns: Tensor
    foreground: Tensor
    used: Tensor
    ids: Tensor
    unlabelled: int
    logit_scale: float

    @property
    def size(self) -> tuple[int, int]:
        """(P, C), padding included."""
        return len(self.columns), len(self.ids) - 1

    @cached_property
    def words_digest(self) -> str:
        """A name for what the columns mean, whatever their ids; of a table without padding.

        Waits for the device when it is first asked for.
        """
        tensors = (self.features, self.columns, self.foreground)
        return fingerprint(*(tensor.cpu().numpy().tobytes() for tensor in tensors))

    def padded(self, phrases: int, columns: int) -> 'LabelTable':
        """The same labels in a table of this size, which is not smaller."""
        more_phrases, more_columns = phrases - self.size[0], columns - self.size[1]
        return replace(
            self,
            features=F.pad(self.features, (0, 0, 0, more_phrases)),
            columns=F.pad(self.columns, (0, more_phrases), value=columns),
            ids=F.pad(self.ids, (0, more_columns)),
        )

    def to(self, device: torch.device) -> 'LabelTable':
        """The same table on a device; itself if it is there."""
        if self.features.device == device:
            return self
        return self._map(lambda tensor: tensor.to(device))

    def clone(self) -> 'LabelTable':
        """A copy in memory of its own."""
        return self._map(Tensor.clone)

    def copy_(self, other: 'LabelTable') -> None:
        """Take over the contents of a table of the same size, in place."""
        for name, tensor in self._tensors().items():
            tensor.copy_(getattr(other, name))

    def _map(self, function: Callable[[Tensor], Tensor]) -> 'LabelTable':
        mapped: dict[str, Any] = {name: function(t) for name, t in self._tensors().items()}
        return replace(self, **mapped)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            name: getattr(self, name)
            for name in ('features', 'columns', 'foreground', 'used', 'ids')
        }

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, C) of tokens, float32 (B, T, D) of unit length; very low for padding."""
        cosines = tokens @ self.features.mT
        return _largest_by_column(cosines, self.columns, self.size[1]) * self.logit_scale

    def patch_logits(self, cosines: Tensor, image_cosines: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of patches, without and with the image prior: (B, C, N) each.

        Args:
            cosines: float32 (B, N, P), of patches and phrases, those of padding too.
            image_cosines: (B, P), the same of whole images; None for no prior.
        """
        return patch_logits(
            cosines, image_cosines, self.columns, self.used, self.size[1], self.logit_scale
        )

    def largest_by_column(self, values: Tensor) -> Tensor:
        """The largest value of each column's phrases, (..., C) of (..., P); low for padding."""
        return _largest_by_column(values, self.columns, self.size[1])

    def cosines(self, tokens: Tensor) -> Tensor:
        """Cosines (B, T, P) of tokens (see `logits`) and phrases; very low for padding."""
        return (tokens @ self.features.mT).masked_fill(self.columns == self.size[1], NO_COSINE)

    def ids_of(self, labels: Tensor, probability: Tensor, min_confidence: Tensor | float) -> Tensor:
        """The class ids of labels (B, H, W), `unlabelled` where they are less probable."""
        return self.ids[labels].masked_fill(probability < min_confidence, self.unlabelled)


@on_cuda_by('label_table_kernels')
def patch_logits(
    cosines: Tensor,
    image_cosines: Tensor | None,
    columns: Tensor,
    used: Tensor,
    count: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `LabelTable.patch_logits`; count is of columns, the other names are the table's."""
    logits = (_largest_by_column(cosines, columns, count) * scale).mT
    if image_cosines is None:
        return logits, logits
    label_logits = logits * (_largest_by_column(image_cosines, columns, count) * scale)[..., None]
    # Those of padding are very low again, whatever they became.
    is_padding = torch.arange(count, device=columns.device)[:, None] >= used
    return logits, label_logits.masked_fill(is_padding, NO_COSINE * scale)


def _largest_by_column(cosines: Tensor, columns: Tensor, count: int) -> Tensor:
    """The largest cosine (..., C) of each column's phrases, of all (..., P)."""
    target = cosines.new_full((*cosines.shape[:-1], count + 1), NO_COSINE)
    by_column = target.scatter_reduce(-1, columns.expand_as(cosines), cosines, 'amax')
    return by_column[..., :-1]


def label_table(
    features: Tensor,
    columns: Sequence[int],
    ids: Sequence[int],
    unlabelled: int,
    background: int,
    logit_scale: float,
    dtype: torch.dtype = torch.uint8,
) -> LabelTable:
    """Make a table without padding, on the device of the features; see `LabelTable`.

    Args:
        columns: The column of each phrase, without gaps.
        ids: Class ids of the columns before the background.
        background: The id of the columns that follow.
        dtype: Of the ids in the table.
    """
    count = max(columns) + 1
    by_label = torch.full((count + 1,), background, dtype=dtype)
    by_label[: len(ids)] = torch.as_tensor(ids, dtype=dtype)
    device = features.device
    return LabelTable(
        features,
        torch.tensor(columns, device=device),
        torch.tensor(len(ids), device=device),
        torch.tensor(count, device=device),
        by_label.to(device),
        unlabelled,
        logit_scale,
    )
