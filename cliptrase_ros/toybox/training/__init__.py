"""What makes and measures the small CLIP of the toybox; nothing at run time imports it.

- `views`: pictures to train on.
- `captions`: what is said of them.
- `losses`: how well the model agrees.
- `towers`: the model, as it is trained and as it is written.
- `train`: the command that trains.
- `evaluate`: the command that measures.
"""
