"""The toybox: a small rendered world and a small CLIP trained on its captions.

It proves that the whole chain works where no real weights can be downloaded. It is not a model
for the real world; `model/README.md` says what it can and cannot do.
"""
