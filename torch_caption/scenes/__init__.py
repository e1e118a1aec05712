"""The built-in dataset: scenes drawn, described and judged."""
