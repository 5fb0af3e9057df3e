"""How Sphinx builds the documentation: `sphinx-build -W docs site`; a broken link or a failing notebook is an error."""

import importlib.metadata

project = "CNN codes"
release = importlib.metadata.version("cnn-codes")
author = "the authors of CNN codes"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "CNN codes"
html_show_sphinx = False
exclude_patterns = ["site"]

myst_heading_anchors = 3
nb_execution_mode = "force"  # the pages show what the notebooks print today
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "none"  # the docstrings tell shapes and dtypes, which types do not
autodoc_member_order = "bysource"
