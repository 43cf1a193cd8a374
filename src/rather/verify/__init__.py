"""Verifiers: what says whether an answer is right, and the processes that it runs in; tasks with answers that can be verified."""
