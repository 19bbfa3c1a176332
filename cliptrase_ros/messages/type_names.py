"""Names of message types, as recordings and `ros2 topic info` have them."""

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
POINTS = 'sensor_msgs/msg/PointCloud2'
CLASS_MASKS = 'cliptrase_ros/msg/ClassMasks'
VOCABULARY = 'cliptrase_ros/msg/Vocabulary'
LABEL_INFO = 'vision_msgs/msg/LabelInfo'
