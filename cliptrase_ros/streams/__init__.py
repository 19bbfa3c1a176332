"""Many images one after the other, of several cameras, on a machine that may fail."""
