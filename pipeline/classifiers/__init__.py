"""Linear classifiers of CNN codes: the search for their settings, their scores, and their files."""
