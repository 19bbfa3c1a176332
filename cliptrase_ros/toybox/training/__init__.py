"""What makes the small CLIP of the toybox; nothing at run time imports it."""
