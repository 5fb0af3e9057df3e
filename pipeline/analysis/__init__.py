"""What codes and predictions tell: transferability, recommendations, comparisons, neighbours."""
