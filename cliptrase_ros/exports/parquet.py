"""Parquet: a file for each part, a row for each image."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cliptrase_ros.exports.documents import Append
from cliptrase_ros.exports.results import LabelledImage
from cliptrase_ros.photos.whole_files import whole_file
from cliptrase_ros.segmentation.vocabulary import Vocabulary

# Rows that are in memory at a time.
_ROW_GROUP = 500


def _schema():
    import pyarrow as pa

    present = [
        *(('id', pa.uint8()), ('name', pa.string()), ('area', pa.int64())),
        *(('confidence', pa.float64()), ('box', pa.list_(pa.int32())), ('rle', pa.string())),
    ]
    return pa.schema(
        [
            *(('path', pa.string()), ('source', pa.string()), ('kind', pa.string())),
            *(('topic', pa.string()), ('stamp_ns', pa.int64())),
            *(('height', pa.int32()), ('width', pa.int32())),
            ('classes', pa.list_(pa.struct(present))),
        ]
    )


@contextmanager
def write_part(folder: Path, key: str) -> Iterator[Append]:
    """Write `KEY.parquet`."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema, rows = _schema(), []
    with (
        whole_file(folder / f'{key}.parquet') as temporary,
        ParquetWriter(temporary, schema, compression='zstd') as writer,
    ):

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def add(image: LabelledImage) -> None:
            rows.append(_row(image))
            if len(rows) == _ROW_GROUP:
                flush()

        yield add
        flush()


def _row(image: LabelledImage) -> dict:
    height, width = image.label.shape
    classes = [
        {'id': class_id, 'name': image.names[class_id], 'area': mask.area}
        | {'confidence': image.confidence[class_id], 'box': mask.box, 'rle': mask.rle}
        for class_id, mask in image.masks.items()
    ]
    return {
        **{'path': image.file_name, 'source': image.source, 'kind': image.kind},
        **{'topic': image.topic, 'stamp_ns': image.stamp_ns},
        **{'height': height, 'width': width, 'classes': classes},
    }


def join_parts(parts: Iterable[dict], vocabulary: Vocabulary, folder: Path) -> None:
    """A folder of Parquet files is one dataset already."""
