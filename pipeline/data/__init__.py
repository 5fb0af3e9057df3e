"""Which images, which labels, which split: manifests, their sources, downloads, and every way to part rows."""
