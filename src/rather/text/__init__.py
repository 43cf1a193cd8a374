"""The text world: language models, from files on disk to log-probabilities and answers."""
