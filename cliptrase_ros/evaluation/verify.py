"""Recorded outputs of the published methods, compared with what the engine gives."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.evaluation.recording_checks import RecordingError
from cliptrase_ros.evaluation.recordings import Recording
from cliptrase_ros.evaluation.recordings_sc_clip import ScClipRecording
from cliptrase_ros.evaluation.verify_sc_clip import ScClipAgreement, compare_sc_clip
from cliptrase_ros.segmentation.model.label_table import LabelTable, label_table
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run.pipeline import Trace, trace
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

#: Share of labels that has to be equal in half precision.
HALF_PRECISION_SHARE = 0.995

#: Two classes tie at a pixel where their logits differ by less, as a share of them: float32 sums of
#: some thousand terms, taken in another order, differ by about as much.
TIE = 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far the engine agrees with a recording of CLIPtrase.

    Attributes:
        clusters: Share of equal entries, 0..1; 1 only where all are.
        raw_labels: The same.
        labels: The same.
        ties: Pixels whose raw label differs because the two classes tie there (`TIE`), so that the
            rounding of a processor decides.
        equal: Whether all clusters are equal, and all labels at all pixels but the ties.
        correlation: Largest absolute difference.
        patch_logits: The same.
        text_features: The same, of the features encoded anew from the phrases.
    """

    clusters: float
    raw_labels: float
    labels: float
    ties: int
    equal: bool
    correlation: float
    patch_logits: float
    text_features: float


class Verifier:
    """Runs the engine, every stage of it and without CUDA graphs, on inputs of recordings."""

    def __init__(
        self,
        loaded: LoadedModel,
        precision: str = 'float32',
        device: torch.device | str = 'cpu',
    ):
        """Make an engine of the weights of the recordings."""
        self._loaded = loaded
        self._segmenter = Segmenter(loaded, device, precision)
        self._text = TextEncoder(loaded.model, loaded.tokenizer)

    @torch.inference_mode()
    def compare_sc_clip(self, recording: ScClipRecording) -> ScClipAgreement:
        """Run SC-CLIP on the recording's picture; see `verify_sc_clip.compare_sc_clip`."""
        return compare_sc_clip(self._segmenter.pipeline, self._text, recording)

    @torch.inference_mode()
    def compare(self, recording: Recording) -> Agreement:
        """Run CLIPtrase on the recording's input.

        Raises:
            RecordingError: The recording was made with another architecture.
        """
        features = torch.from_numpy(recording.text_features)
        encoded = self._text.encode([*recording.foreground, *recording.background]).cpu()
        if encoded.shape != features.shape:
            raise RecordingError(
                f'the recording has text features of {features.shape[1]} numbers, the model '
                f'{self._loaded.name} of {encoded.shape[1]}: it was made with another architecture'
            )
        table = recording_table(recording, float(self._loaded.model.logit_scale.exp()))
        result = on_host(self._trace(recording, table))
        if result.correlation[0].shape != recording.correlation.shape:
            raise RecordingError(
                f'the recording has {len(recording.clusters)} patches where the model '
                f'{self._loaded.name} has {result.correlation.shape[1]}: it was made with another '
                'architecture'
            )
        clusters, raw_labels, labels = (
            getattr(result, name)[0].numpy() == getattr(recording, name)
            for name in ('clusters', 'raw_labels', 'labels')
        )
        ties = ~raw_labels & tied(recording, result, table)[0].numpy()
        return Agreement(
            clusters=float(clusters.mean()),
            raw_labels=float(raw_labels.mean()),
            labels=float(labels.mean()),
            ties=int(ties.sum()),
            equal=bool(clusters.all() and ((raw_labels & labels) | ties).all()),
            correlation=_difference(result.correlation[0], recording.correlation),
            patch_logits=_difference(result.patch_logits[0], recording.patch_logits),
            text_features=_difference(encoded, recording.text_features),
        )

    def _trace(self, recording: Recording, table: LabelTable) -> Trace:
        pipeline, device = self._segmenter.pipeline, self._segmenter.device
        pixels = torch.from_numpy(recording.input).permute(2, 0, 1)[None].to(device)
        method = replace(PRESETS['paper'], image_prior=recording.mode == 'image_prior')
        return trace(
            pipeline.backbone, pipeline.normalise(pixels, method.frame), table.to(device), method
        )


def recording_table(recording: Recording, logit_scale: float) -> LabelTable:
    """Label columns of a recording's phrases, on the host: a phrase a column, ids by position."""
    features = torch.from_numpy(recording.text_features)
    classes = range(len(recording.foreground))
    columns = range(len(features))
    return label_table(features, columns, classes, UNLABELLED, UNLABELLED, logit_scale)


def on_host(result: Trace) -> Trace:
    """The same with its tensors in host memory; without the history it leaves."""
    tensors = {n: v.cpu() for n, v in vars(result).items() if isinstance(v, Tensor)}
    return replace(result, history=None, **tensors)


def tied(recording: Recording, result: Trace, table: LabelTable) -> Tensor:
    """Where two labels before the vote, ours and the recorded one, tie: bool (B, H, W).

    Args:
        result: Of B copies of the recording's input, on the host.
        table: From `recording_table`.
    """
    logits = result.patch_logits.double()
    if recording.mode == 'image_prior':
        logits = logits * table.logits(result.tokens)[:, 0, :, None, None]
    size = recording.raw_labels.shape
    enlarged = F.interpolate(logits, size=size, mode='bilinear', align_corners=False)
    foreground = len(recording.foreground)
    found = enlarged[:, :foreground]
    if recording.background:
        found = torch.cat([found, enlarged[:, foreground:].amax(1, keepdim=True)], 1)
    recorded = torch.from_numpy(recording.raw_labels.astype(np.int64)).expand(len(found), *size)
    is_class = recorded < found.shape[1]
    ours, theirs = (
        found.gather(1, which[:, None])[:, 0]
        for which in (result.raw_labels, recorded.where(is_class, 0))
    )
    return is_class & ((ours - theirs).abs() <= TIE * ours.abs())


def _difference(ours: Tensor, recorded: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - recorded).max())
