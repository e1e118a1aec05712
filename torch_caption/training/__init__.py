"""From data to a trained captioner."""
