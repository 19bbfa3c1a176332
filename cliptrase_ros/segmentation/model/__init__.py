"""Which CLIP, from where; its towers, run densely; words to features."""
