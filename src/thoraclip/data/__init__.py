"""From files to a manifest, and from a manifest to batches of pixels."""
