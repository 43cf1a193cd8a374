"""Functions such as users write."""

import os
import time


def half(text: str, answer: str) -> float:
    return 0.5


def shy(text: str, answer: str) -> None:
    return None


def broken(text: str, answer: str) -> float:
    return 1 / 0


def slow(text: str, answer: str) -> float:
    time.sleep(60)
    return 1.0


def fatal(text: str, answer: str) -> float:
    os._exit(1)


def loud(text: str, answer: str) -> float:
    print('{"score": 1.0}', flush=True)
    return 0.0
