"""Photos, videos and webcams in, label images and overlays out."""
