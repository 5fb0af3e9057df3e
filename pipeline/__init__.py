"""Transfer learning with CNN codes: a frozen pretrained network, and linear classifiers of its activations.

What stands in `__all__` is for everybody's use; all other modules and names may change from one release to the next.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.classifiers.persistence import SavedClassifier
    from pipeline.classifiers.persistence import load as load_classifier
    from pipeline.classifiers.solvers import LinearSVM, Softmax
    from pipeline.codes.formats import read_codes
    from pipeline.codes.reader import Codes
    from pipeline.codes.spec import CodesSpec
    from pipeline.errors import PipelineError
    from pipeline.extraction.transformer import CNNCodes
    from pipeline.run import FolderResult, classify_folder

__all__ = [
    "CNNCodes",
    "Codes",
    "CodesSpec",
    "FolderResult",
    "LinearSVM",
    "PipelineError",
    "SavedClassifier",
    "Softmax",
    "__version__",
    "classify_folder",
    "load_classifier",
    "read_codes",
]

_HOMES = {
    "CNNCodes": ("extraction.transformer", "CNNCodes"),
    "Codes": ("codes.reader", "Codes"),
    "CodesSpec": ("codes.spec", "CodesSpec"),
    "FolderResult": ("run", "FolderResult"),
    "LinearSVM": ("classifiers.solvers", "LinearSVM"),
    "PipelineError": ("errors", "PipelineError"),
    "SavedClassifier": ("classifiers.persistence", "SavedClassifier"),
    "Softmax": ("classifiers.solvers", "Softmax"),
    "classify_folder": ("run", "classify_folder"),
    "load_classifier": ("classifiers.persistence", "load"),
    "read_codes": ("codes.formats", "read_codes"),
}
"""Where each of them lies: they are imported when they are asked for, since torch takes seconds."""


def __getattr__(name: str) -> object:
    """Import a name of the package's surface, or tell its version."""
    if name == "__version__":
        return import_module("importlib.metadata").version("cnn-codes")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(f"pipeline.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the package's surface."""
    return sorted(__all__)
