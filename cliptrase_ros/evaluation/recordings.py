"""Files with what published code gave for an image: of CLIPtrase, and of SC-CLIP."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliptrase_ros.evaluation.recording_checks import (
    ArrayKinds,
    RecordingError,
    check_arrays,
    check_consistent,
    is_picture,
)
from cliptrase_ros.evaluation.recordings_sc_clip import (
    ARRAYS,
    PAMR_ARRAYS,
    ScClipRecording,
    sc_clip_recording,
)

MODES = ('plain', 'background', 'image_prior')

# Every array of a recording of CLIPtrase.
_CLIPTRASE_ARRAYS: ArrayKinds = {
    'input': ('u', 3),
    'text_features': ('f', 2),
    'foreground': ('U', 1),
    'background': ('U', 1),
    'mode': ('U', 0),
    'correlation': ('f', 2),
    'patch_logits': ('f', 3),
    'clusters': ('i', 1),
    'raw_labels': ('u', 2),
    'labels': ('u', 2),
}


@dataclass(frozen=True)
class Recording:
    """What published CLIPtrase gave for one image of N = h w patches.

    Attributes:
        input: uint8 (H, W, 3) RGB, what the network sees.
        text_features: float32 (P, D), of the phrases of `foreground`, then of `background`.
        foreground: A phrase for each class.
        background: Phrases that stand for none of the classes.
        mode: One of `MODES`.
        correlation: float32 (N, N), after denoising.
        patch_logits: float32 (P, h, w).
        clusters: int (N,), -1 for noise.
        raw_labels: uint8 (H, W), labels before the vote; len(foreground) is the background.
        labels: uint8 (H, W), labels after the vote.
    """

    input: np.ndarray
    text_features: np.ndarray
    foreground: tuple[str, ...]
    background: tuple[str, ...]
    mode: str
    correlation: np.ndarray
    patch_logits: np.ndarray
    clusters: np.ndarray
    raw_labels: np.ndarray
    labels: np.ndarray


def read_recording(path: Path) -> Recording | ScClipRecording:
    """Read a recording (.npz) of either method; what is in the file says of which.

    Raises:
        RecordingError: The file is no usable recording.
    """
    if not path.is_file():
        raise RecordingError(f'{path} does not exist or is not a file')
    names = {*_CLIPTRASE_ARRAYS, *ARRAYS, *PAMR_ARRAYS}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in names}
    except Exception as error:
        # NumPy and the modules below it raise nearly anything over damaged files.
        # On what is no .npz its advice is to load it unsafely.
        reason = '' if isinstance(error, ValueError | TypeError) else f': {error}'
        raise RecordingError(f'{path} is not an .npz file of plain arrays{reason}') from error
    try:
        return sc_clip_recording(arrays) if 'settings' in arrays else _cliptrase(arrays)
    except RecordingError as error:
        raise RecordingError(f'{path} {error}') from None


def _cliptrase(arrays: dict[str, np.ndarray]) -> Recording:
    check_arrays(arrays, _CLIPTRASE_ARRAYS, 'CLIPtrase')
    recording = Recording(
        **{
            **{name: arrays[name] for name in _CLIPTRASE_ARRAYS},
            'foreground': tuple(map(str, arrays['foreground'])),
            'background': tuple(map(str, arrays['background'])),
            'mode': str(arrays['mode']),
        }
    )
    phrases = len(recording.foreground) + len(recording.background)
    patches = recording.patch_logits.shape[1] * recording.patch_logits.shape[2]
    size = recording.input.shape[:2]
    check_consistent(
        input=is_picture(recording.input),
        mode=recording.mode in MODES,
        foreground=len(recording.foreground) > 0,
        text_features=len(recording.text_features) == phrases,
        patch_logits=len(recording.patch_logits) == phrases,
        correlation=recording.correlation.shape == (patches, patches),
        clusters=recording.clusters.shape == (patches,),
        raw_labels=recording.raw_labels.shape == size,
        labels=recording.labels.shape == size,
    )
    return recording
