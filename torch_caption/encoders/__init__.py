"""From pictures to features."""
