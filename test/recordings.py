"""Recordings of the viewer, read back with its SDK."""

from collections import defaultdict

import cv2
import numpy as np
import pytest


def read_recording(path):
    """{(entity path, component): [({timeline: value}, value), ...]} of a recording."""
    chunks = pytest.importorskip('rerun.chunk', reason='reading recordings needs a newer SDK')
    content = defaultdict(list)
    for chunk in chunks.RrdReader(path).stream():
        batch = chunk.to_record_batch()
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        timelines = {name: columns[name] for name in chunk.timeline_names}
        for name, column in columns.items():
            if ':' not in name:
                continue
            for row in range(batch.num_rows):
                times = {timeline: values[row] for timeline, values in timelines.items()}
                content[chunk.entity_path, name].append((times, column[row].as_py()))
    for rows in content.values():
        rows.sort(key=lambda row: str(sorted(row[0].items(), key=str)))
    return content


def stamps_ns(content, entity, component):
    return [times['stamp'].value for times, _ in content[entity, component]]


def labels(content, source):
    """Label images in the order of time."""
    buffers = content[f'/{source}/label', 'SegmentationImage:buffer']
    formats = content[f'/{source}/label', 'SegmentationImage:format']
    return [
        np.array(buffer[0], np.uint8).reshape(shape[0]['height'], shape[0]['width'])
        for (_, buffer), (_, shape) in zip(buffers, formats, strict=True)
    ]


def pictures(content, source, output='image'):
    """Pictures, uint8 (H, W, 3) RGB, in the order of time."""
    return [
        cv2.cvtColor(cv2.imdecode(np.array(blob[0], np.uint8), 1), cv2.COLOR_BGR2RGB)
        for _, blob in content[f'/{source}/{output}', 'EncodedImage:blob']
    ]


def classes(content, source):
    """[{id: name}, ...], one for each time that classes were announced."""
    return [
        {entry['class_id']: entry['class_description']['info']['label'] for entry in context[0]}
        for _, context in content[f'/{source}', 'AnnotationContext:context']
    ]
