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
DETECTIONS = 'vision_msgs/msg/Detection2DArray'
DETECTIONS_3D = 'vision_msgs/msg/Detection3DArray'
FFMPEG_PACKET = 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket'
COMPRESSED_VIDEO = 'foxglove_msgs/msg/CompressedVideo'
OCCUPANCY_GRID = 'nav_msgs/msg/OccupancyGrid'
