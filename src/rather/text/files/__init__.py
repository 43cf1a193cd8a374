"""The files of models: their descriptions and their formats."""
