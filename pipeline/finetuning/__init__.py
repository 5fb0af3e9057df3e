"""Fine-tuning a network: recipes, the head, where it starts, the training loop, and its checkpoints."""
