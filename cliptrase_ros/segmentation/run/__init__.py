"""A frame's way through model and method, on a CPU or as CUDA graphs."""
