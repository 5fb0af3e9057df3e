"""A classifier and its network as one, for use without this program."""
