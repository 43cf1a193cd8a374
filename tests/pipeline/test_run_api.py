"""`rather.Run`: a run from a program, as the command line has it."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

import rather
from rather.errors import ConfigError, RatherError

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle"}


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    """A run's TOML file: eight prompts, a random model, a simulated panel."""
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i % 2 else "train"} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.toml"
    path.write_text(
        f'[run]\nfolder = "{tmp_path}"\n[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\nprompts = "{tmp_path / "prompts.jsonl"}"\n'
        "[sample]\nmax_tokens = 8\n[train]\nbatch_size = 4\nepochs = 1\nlr = 1e-4\n"
    )
    return path


class Tags(HTMLParser):
    """Takes a page apart; every tag must be closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen = list[str](), list[tuple[str, dict[str, str | None]]]()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_run_goes_through_its_loop_and_shows_its_report(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = rather.Run(file, **{"train.lr": 1e-2, "run.seed": 3})
    assert (run.config.train.lr, run.config.run.seed, run.config.train.batch_size) == (1e-2, 3, 4)
    said = run.loop()
    assert said is not None
    assert said.startswith("win rate against the base model: ")
    assert run.loop() == said, "it goes on, and there is nothing more to do"
    run.close()
    assert len(run.store.labels("run", "train")) == 4 * 3, "four questions, three judges; the store is opened again"
    assert capsys.readouterr().err == ""

    report = run.report()
    assert not report.path.exists()
    assert report.save().read_text() == report.html
    assert report.path == file.parent / "run" / "report.html"
    assert report.save(file.parent / "else.html").read_text() == report.html
    names = [name for name, _ in Tags(report.html).seen]
    assert names.count("html") == names.count("body") == 1
    # In a notebook the page is the attribute of a frame: nothing of it is in the notebook's own page.
    ((name, attributes),) = Tags(report._repr_html_()).seen
    assert (name, attributes["srcdoc"]) == ("iframe", report.html)
    assert "sandbox" in attributes
    run.close()


def test_another_run_of_the_same_file_goes_on(file: Path) -> None:
    first = rather.Run(str(file))
    assert first.sample() == 4
    first.close()
    second = rather.Run(file, **{"judge.panel": [{"name": "one", "utility": "brief"}]})
    assert (second.sample(), second.label()) == (0, 4)
    second.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.lrr": 1e-4}, r"^there is no setting train.lrr; did you mean train.lr\?$"),
        ({"learner.lr": 1e-4}, "^there is no setting learner; "),
        ({"lr": 1e-4}, "^'lr' is no setting; write section.key, as in train.lr$"),
        ({"train.lr": "fast"}, r"^train.lr: .*number.* \(got 'fast'\)$"),
        ({"data.prompts": 3}, r"^data.prompts: input should be a valid string \(got 3\)$"),
        ({"sample.rows": 3}, "^the setting sample.rows is called sample.batch_size now$"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(changes: dict[str, object], says: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        rather.Run(file, **changes)


def test_nobody_is_asked_whose_answers_are_not_learned_from(file: Path) -> None:
    run = rather.Run(file, **{"train.judges": ["nobody"]})
    with pytest.raises(ConfigError, match=r"^train.judges is \['nobody'\], but the judges are .*; name one of them"):
        run.loop()
    assert run.store.labels("run") == []


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file .*none.toml; `rather config > .*none.toml` writes one to start from"):
        rather.Run(tmp_path / "none.toml")


def test_settings_are_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^settings is 3; give a TOML file$"):
        rather.Run(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.learner": "kto", "train.batch_size": 1}, "^train.batch_size is 1; set it to 2 or more"),
        ({"dpo.loss": "nowhere:loss"}, "^dpo.loss: the module 'nowhere' cannot be imported"),
        ({"train.learner": "reward", "reward.kind": "head", "reward.layers": [9]}, r"^layers is \[9\]; give rising numbers of blocks"),
        ({"train.learner": "ppo", "train.reward": "labels", "hack.gold": "gold"}, "^there is no utility 'gold'; take one of"),
        ({"train.learner": "ppo", "train.reward": "environment"}, "^text has no environment that rewards; set train.reward to"),
        ({"train.learner": "grpo", "train.reward": "model"}, '^train.reward = "model" needs judge.checkpoint, the folder of'),
        ({"train.learner": "grpo", "train.reward": "model", "judge.checkpoint": "/none"}, "^judge.checkpoint is '/none', and there is no"),
        ({"judge.kind": "model", "judge.checkpoint": "/none"}, "^judge.checkpoint is '/none', and there is no such folder; give"),
        ({"judge.kind": "function", "judge.function": "nowhere:judge"}, "^judge.function: the module 'nowhere' cannot be imported"),
        ({"judge.panel": [{"name": "one", "utility": "taste"}]}, "^there is no utility 'taste'; take one of"),
        ({"sample.temperature": 0.0, "train.learner": "grpo"}, "^sample.temperature is 0, at which all answers of a group of grpo"),
        ({"sample.temperature": 0.0}, "^sample.temperature is 0, at which both answers to a prompt are the same"),
        ({"sample.temperature": 0.0, "sample.contrast": ["Be brief.", "Be brief."]}, "^sample.temperature is 0, at which both"),
        ({"data.prompts": "ALL"}, "^there are no held-out prompts; set data.held_out"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_sampled(changes: dict[str, object], says: str, file: Path) -> None:
    (file.parent / "all.jsonl").write_text("".join(f'{{"prompt": "question {i}?", "split": "train"}}\n' for i in range(4)))
    run = rather.Run(file, **{key: str(file.parent / "all.jsonl") if value == "ALL" else value for key, value in changes.items()})
    with pytest.raises(RatherError, match=says):
        run.loop()
    assert not run.store.keys("run", "train"), "nobody could have been asked"
    run.close()
