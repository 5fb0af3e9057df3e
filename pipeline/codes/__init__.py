"""CNN codes on disk: what they are, and how their HDF5 files are read and written."""
