"""Files, text and pictures from untrusted sources; downloads, locks, signals and exit statuses."""
