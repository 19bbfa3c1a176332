"""The stages of the methods, and what improves on them, as functions of arrays and tensors."""
