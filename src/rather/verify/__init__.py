"""Verifiers: what says whether an answer is right, and the processes that it runs in."""
