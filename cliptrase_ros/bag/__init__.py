"""Recordings of ROS 2 in, the same recordings with labels out; no ROS needed."""
