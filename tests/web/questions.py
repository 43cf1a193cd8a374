from rather.core import Comparison, Task, Trajectory


def question(number: int, prompt: str = "Which?", left: str = "one", right: str = "two") -> Comparison:
    task = Task("test", str(number), prompt)
    return Comparison((Trajectory(task, "p@0", f"{left} {number}"),), (Trajectory(task, "p@0", f"{right} {number}"),), key=f"q{number}")


def of_four(number: int, words: tuple[str, ...] = ("one", "two", "three", "four")) -> Comparison:
    """A question of four sides."""
    task = Task("test", str(number), "Which?")
    a, b, *others = ((Trajectory(task, "p@0", f"{word} {number}"),) for word in words)
    return Comparison(a, b, key=f"four{number}", others=tuple(others))
