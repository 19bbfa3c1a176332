"""Many recordings, videos and photos, local or in object storage, labelled by many workers."""
