"""The folder for results, and what an earlier run left in it."""

import json
from pathlib import Path

from cliptrase_ros.photos.sources import InputError, resolve

#: The file that describes all results; it shows an output folder to be one.
REPORT = 'segmentation.json'


def check_output(output: Path) -> None:
    """Refuse a folder with other things in it than earlier results. Raises InputError."""
    if output.exists() and not output.is_dir():
        raise InputError(f'the output {output} exists and is no folder')
    if output.is_dir() and any(output.iterdir()) and not (output / REPORT).is_file():
        raise InputError(
            f'the output folder {output} holds other things than earlier results; choose another '
            '--output'
        )


def remove_earlier_results(output: Path) -> list[tuple[str, str]]:
    """Delete what the report of an earlier run in an output folder lists, in that folder alone.

    Otherwise label images of another vocabulary could stay among the new ones.

    Returns:
        (file, why) of those that could not be deleted.
    """
    try:
        images = json.loads((output / REPORT).read_text(encoding='utf-8'))['images']
        files = {entry[kind] for entry in images for kind in ('label', 'overlay') if kind in entry}
        paths = {file: resolve(output / file) for file in sorted(files)}
    except (OSError, ValueError, LookupError, TypeError):
        return []
    left = []
    for file, path in paths.items():
        if resolve(output) in path.parents:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                left.append((file, f'of an earlier run, cannot be deleted: {error.strerror}'))
    return left
