"""Reward hacking: the alarm, the command that shows it, and its page."""
