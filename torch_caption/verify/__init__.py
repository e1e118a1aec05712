"""Hand-derived against automatic gradients."""
