"""Open-vocabulary semantic segmentation of camera images with CLIP, without training, for ROS 2."""

import pkgutil

# The generated messages (cliptrase_ros.msg) live beside this package only where colcon has
# installed it; run from the source tree, the two portions are found in two places.
__path__ = pkgutil.extend_path(__path__, __name__)
