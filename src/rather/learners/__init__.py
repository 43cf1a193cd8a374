"""Learners: one file each, whose `step` reads from top to bottom."""
