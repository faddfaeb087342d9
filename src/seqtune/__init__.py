"""Fine-tune language models from recipe files."""

__version__ = "0.1.0"
