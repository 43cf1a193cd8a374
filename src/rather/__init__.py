"""From "I'd rather have this one" to better policies: preference learning for language models and control."""

from importlib.metadata import version

__version__ = version("rather")
