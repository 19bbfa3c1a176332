"""How long the engine takes against the bare CLIP encoder, on the machine at hand, without ROS."""
