"""The version, in the one place that packaging, manifests and cache keys read it from."""

__version__ = "0.1.0"
