from pathlib import Path
from types import SimpleNamespace

from rather.config import toml as toml
from rather.core import Comparison, Label, Task, Trajectory
from rather.learners.metrics import Metrics
from rather.report.cost import Cost, Traits
from rather.report.report import Report
from rather.store import Store

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_what_models_and_people_wrote_is_escaped(tmp_path: Path) -> None:
    settings = toml.load(None, [f"run.folder={tmp_path}", f"model.path={HOSTILE}"])
    store = Store(settings.store)
    store.add_judge(HOSTILE, "person")
    sides = [Trajectory(Task("f", "1", HOSTILE), policy, HOSTILE) for policy in ("run@0-5-abc", "run@start")]
    for purpose in ("train", "eval-0-5-abc"):
        (number,) = store.ask("run", [Comparison((sides[0],), (sides[1],), key=purpose)], purpose)
        store.answer(Label(number, HOSTILE, 1.0, seconds=2.0))
    metrics = Metrics(settings.folder / "metrics.jsonl")
    price = Cost(Traits(-2.0, 3.0, 1.0, 0.0, 3.0, 1.0), Traits(-1.0, 4.0, 0.5, 0.1, 4.0, 1.0)).metrics()
    metrics.write(
        "eval-0",
        5,
        {"win_rate": 1.0, "win_rate_low": 0.2, "win_rate_high": 1.0, "prompts": 1, **price},
        checkpoint="abc",
        evaluation="eval-0-5-abc",
        judges=[],
    )
    for step in (1, 2):
        metrics.write("train-dpo-0", step, {"loss": 0.5, "accuracy": 1.0, f"temperature/{HOSTILE}$x$": 2.0})
    page = Report.of(SimpleNamespace(config=settings, store=store, metrics=metrics, folder=settings.folder)).html
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "Content-Security-Policy" in page
    assert page.count("<svg") == 5, "loss, accuracy, temperatures, win rate and lengths"
    assert "100 %" in page
    assert "Warning:</strong> the answers are 1.00 nats a token less likely" in page
    for what in ("nats a token under the base model", "words an answer", "answers that end", "repeated pairs of words", "distinct words"):
        assert what in page
