"""Transfer learning with CNN codes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.extraction.transformer import CNNCodes as CNNCodes


def __getattr__(name: str) -> Any:
    """Import what is part of the package's surface when it is asked for: torch takes seconds."""
    if name == "CNNCodes":
        from pipeline.extraction.transformer import CNNCodes

        return CNNCodes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
