"""The published method and what improves on it, as functions of arrays and tensors."""
