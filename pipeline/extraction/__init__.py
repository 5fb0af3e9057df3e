"""Running a frozen network over images: loading, batching, tuning to the machine, and resuming."""
