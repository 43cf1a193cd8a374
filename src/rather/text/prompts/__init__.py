"""What a model is asked: chat templates, and whether it fits."""
