"""Training a network further: recipes, the head, the loop, and its checkpoints."""
