from rather.core import Comparison, Task, Trajectory


def question(number: int, prompt: str = "Which?", left: str = "one", right: str = "two") -> Comparison:
    task = Task("test", str(number), prompt)
    return Comparison((Trajectory(task, "p@0", f"{left} {number}"),), (Trajectory(task, "p@0", f"{right} {number}"),), key=f"q{number}")
