"""Data: sources, preparation, decoding, view recipes, and the loader."""
