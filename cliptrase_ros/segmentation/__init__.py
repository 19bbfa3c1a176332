"""The CLIPtrase engine: arrays and tensors in, arrays out. Nothing here imports ROS."""
