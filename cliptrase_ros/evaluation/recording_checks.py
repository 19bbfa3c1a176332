"""What every recording of published code has to be."""

import numpy as np

#: Kind of dtype and number of dimensions of arrays, by name.
ArrayKinds = dict[str, tuple[str, int]]


class RecordingError(ValueError):
    """A file is no usable recording; the message says why."""


def check_arrays(arrays: dict[str, np.ndarray], wanted: ArrayKinds, method: str) -> None:
    """Raise RecordingError for arrays that are missing, of another kind, or not finite."""
    problems = [
        f'{name} is missing'
        if name not in arrays
        else f'{name} is {arrays[name].dtype} of shape {arrays[name].shape}'
        for name, (kind, dimensions) in wanted.items()
        if name not in arrays or arrays[name].dtype.kind != kind or arrays[name].ndim != dimensions
    ]
    if problems:
        raise RecordingError(f'is not a recording of {method}: {"; ".join(problems)}')
    wrong = [
        name
        for name, (kind, _) in wanted.items()
        if kind == 'f' and not np.isfinite(arrays[name]).all()
    ]
    if wrong:
        raise RecordingError(f'has NaN or infinity; see its {", ".join(wrong)}')


def check_consistent(**fits: bool) -> None:
    """Raise RecordingError that names the arrays that do not fit the others."""
    wrong = [name for name, right in fits.items() if not right]
    if wrong:
        raise RecordingError(f'contradicts itself; see its {", ".join(wrong)}')


def is_picture(image: np.ndarray) -> bool:
    """Whether an array of three dimensions is uint8 (H, W, 3)."""
    return image.dtype == np.uint8 and image.shape[2] == 3 and image.size > 0


def are_indices(numbers: np.ndarray, count: int) -> bool:
    """Whether all are 0..count-1."""
    return bool(((numbers >= 0) & (numbers < count)).all())
