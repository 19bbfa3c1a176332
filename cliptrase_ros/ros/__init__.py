"""ROS 2 wiring around the engine: messages, parameters, cameras and one inference thread."""
