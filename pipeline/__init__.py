"""Transfer learning with CNN codes."""
