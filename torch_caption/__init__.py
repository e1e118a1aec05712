"""Image captioning with recurrent networks whose every gradient is derived by hand."""

__version__ = "0.1.0"
