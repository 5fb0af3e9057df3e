"""Benchmarks that a reader can repeat; none of them is a test."""

import os
from pathlib import Path

ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
}
"""For commands of this project in any folder."""
