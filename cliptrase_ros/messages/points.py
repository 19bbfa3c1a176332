"""Reading labelled points of a point cloud message, without any ROS, by its fields."""

import numpy as np

from cliptrase_ros.messages.type_names import Message

#: Datatypes of sensor_msgs/PointField, from INT8, which is 1, to FLOAT64, which is 8.
POINT_FIELD_TYPES = ('i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'f4', 'f8')


class PointsError(ValueError):
    """A point cloud that cannot be used; the message says what is wrong with it."""


def read_points(cloud: Message) -> tuple[np.ndarray, np.ndarray]:
    """Points of a sensor_msgs/PointCloud2 that have a place, and their class ids (`label`).

    Returns:
        float32 (N, 3) in the cloud's unit, and uint8 (N,).

    Raises:
        PointsError: No such fields, or fields, steps and data that do not fit together.
    """
    fields = {field.name: field for field in cloud.fields}
    missing = [name for name in ('x', 'y', 'z', 'label') if name not in fields]
    if missing:
        raise PointsError(
            f'a cloud without {", ".join(missing)}; its fields are {", ".join(fields) or "none"}'
        )
    if any(not 1 <= field.datatype <= len(POINT_FIELD_TYPES) for field in fields.values()):
        raise PointsError('a cloud with a field of unknown type')
    if cloud.height == 0 or cloud.width == 0:
        return np.zeros((0, 3), np.float32), np.zeros(0, np.uint8)
    needed = cloud.row_step * (cloud.height - 1) + cloud.point_step * cloud.width
    if len(cloud.data) < needed:
        raise PointsError(f'a cloud with {len(cloud.data)} bytes, which needs {needed}')
    order = '>' if cloud.is_bigendian else '<'
    formats = [order + POINT_FIELD_TYPES[field.datatype - 1] for field in fields.values()]
    try:
        dtype = np.dtype(
            {
                'names': list(fields),
                'formats': formats,
                'offsets': [field.offset for field in fields.values()],
                'itemsize': cloud.point_step,
            }
        )
        strides = (cloud.row_step, cloud.point_step)
        points = np.ndarray((cloud.height, cloud.width), dtype, cloud.data, strides=strides)
    except ValueError as error:
        raise PointsError(f'a cloud whose fields and steps do not fit ({error})') from error
    if cloud.row_step < cloud.width * cloud.point_step:
        raise PointsError(
            f'a cloud whose fields and steps do not fit: row_step is {cloud.row_step}, '
            f'{cloud.width} points of {cloud.point_step} bytes take more'
        )
    points = points.ravel()
    positions = np.stack([points[axis] for axis in 'xyz'], axis=1).astype(np.float32)
    placed = np.isfinite(positions).all(axis=1)
    return positions[placed], points['label'][placed].astype(np.uint8)
