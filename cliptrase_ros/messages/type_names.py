"""Names of message types, as recordings and `ros2 topic info` have them."""

from typing import Any, TypeAlias

#: A message of rclpy or one read from a recording: code outside `ros/` uses its fields alone.
Message: TypeAlias = Any

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINTS = 'sensor_msgs/msg/PointCloud2'
CLASS_MASKS = 'cliptrase_ros/msg/ClassMasks'
VOCABULARY = 'cliptrase_ros/msg/Vocabulary'
LABEL_INFO = 'vision_msgs/msg/LabelInfo'
