"""Benchmarks: datasets as they lie on disk, protocols, metrics. Nothing here imports ROS."""
