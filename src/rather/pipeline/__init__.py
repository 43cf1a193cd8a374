"""A run, phase by phase, and what it is made of."""
