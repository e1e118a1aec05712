"""Files, text and pictures that may be anybody's; downloads, locks, signals and exit statuses."""
