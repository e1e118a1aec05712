"""From photographs and captions to a data directory."""
