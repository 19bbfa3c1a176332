"""The toybox: a small rendered world and a small CLIP trained on its captions.

It proves that the whole chain works where no real weights can be downloaded. It is not a model
for the real world; `model/README.md` says what it can and cannot do.

- `materials`: what things look like.
- `scenes`: the classes, random rooms of them, and the camera's tour through a room.
- `renderer`: image, depth and labels of rooms as cameras see them.
- `sequences`: what the camera on tour takes, one picture or many with true motion.
- `model/`: weights, configuration and card of the small CLIP.
- `training/`: what made the weights and measures them; nothing at run time imports it.
"""
