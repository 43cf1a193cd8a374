from pathlib import Path
from types import SimpleNamespace

from rather.config import toml as toml
from rather.core import Comparison, Label, Task, Trajectory
from rather.learners.metrics import Metrics
from rather.report.cost import Cost, Traits
from rather.report.report import Report, by_round
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


def test_rounds_are_drawn_one_after_the_other_in_one_curve(tmp_path: Path) -> None:
    settings = toml.load(None, [f"run.folder={tmp_path}", "control.env=CartPole-v1", "train.learner=ppo"])
    store, metrics = Store(settings.store), Metrics(settings.folder / "metrics.jsonl")
    for number in range(11):  # as words, round 10 would come before round 2
        for learner in ("reward", "ppo"):
            for step in (1, 2):
                metrics.write(f"train-{learner}-{number}", step, {"loss": 0.5, "score": 1.0, "score_stderr": 0.1, "score_std": 1.0})
    measured = {"return_policy": 195.0, "return_policy_stderr": 5.0, "return_policy_std": 50.0, "return_base": 20.0}
    metrics.write("eval-10", 2, measured, checkpoint="abc")
    run = SimpleNamespace(
        config=settings,
        store=store,
        metrics=metrics,
        folder=settings.folder,
        proxy="score",
        checkpoints=lambda number: tmp_path / str(number),
    )
    page = Report.of(run).html
    assert page.count("<svg") == 4, "score and loss of each learner"
    assert page.index("Loss (ppo)") < page.index("Loss (reward)"), "the policy's own curves come first"
    assert page.count("no alarm can go off") == 1
    assert "no alarm can go off: no gold reward was measured" in page
    assert '<div class="big">195</div>' in page
    assert "95 % interval 185.2 to 204.8; 20 before" in page, "195 -+ 1.96 * 5"


def test_steps_of_a_round_follow_those_of_the_round_before() -> None:
    rows = [{"phase": f"train-ppo-{n}", "step": step} for n in (0, 10, 2) for step in (1, 2)] + [{"phase": "eval-0", "step": 2}]
    assert [[row["step"] for row in own] for own in by_round(rows)["ppo"]] == [[1, 2], [3, 4], [5, 6]]
    assert [own[0]["phase"] for own in by_round(rows)["ppo"]] == ["train-ppo-0", "train-ppo-2", "train-ppo-10"]


def test_agreement_that_is_not_known_is_not_shown(tmp_path: Path) -> None:
    settings, texts = toml.load(None, [f"run.folder={tmp_path}"]), [[Trajectory(Task("f", "1", "p"), "x", text)] for text in "ab"]
    store, metrics = Store(settings.store), Metrics(settings.folder / "metrics.jsonl")
    for judge in ("Ann", "Ben", "Cem"):
        store.add_judge(judge, "person")
    first, second = store.ask("run", [Comparison(tuple(texts[0]), tuple(texts[1]), key=key) for key in "12"])
    store.answer_all([Label(first, "Ann", 1.0), Label(first, "Ben", 1.0), Label(second, "Ben", 0.0), Label(second, "Cem", 1.0)])
    run = SimpleNamespace(config=settings, store=store, metrics=metrics, folder=settings.folder)
    assert ">nan" not in (page := Report.of(run).html)
    assert "Cohen's kappa: Ben and Cem 0.00.\n" in page, "Ann and Ben say the same, and Ann and Cem have no question in common"
