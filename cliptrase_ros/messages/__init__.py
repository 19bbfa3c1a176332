"""Pixels, points and depth of messages, which are taken by their fields: no ROS."""
