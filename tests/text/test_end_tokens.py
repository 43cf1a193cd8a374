"""Which tokens end an answer, by the files of a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rather.errors import ModelError
from rather.text.tokens import Tokens
from text.gguf_files import write_gguf


def write(folder: Path, name: str, **keys: Any) -> None:
    path = folder / name
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | keys))


@pytest.fixture
def endless(tiny: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer names no end."""
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    write(folder, "tokenizer_config.json", eos_token=None)
    (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "stop"),
    [(7, None, {7}), ([7, 9], None, {7, 9}), (None, 8, {8}), (7, [8, 9], {7, 8, 9})],
)  # fmt: skip
def test_without_an_end_in_the_tokenizer_those_of_the_other_files_count(
    endless: Path, config: Any, generation: Any, stop: set[int]
) -> None:
    write(endless, "config.json", eos_token_id=config)
    if generation is not None:
        write(endless, "generation_config.json", eos_token_id=generation)
    assert Tokens.load(endless).stop == stop


def test_a_file_for_generation_is_believed_before_config_json(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))  # whose tokenizer's end is token 0
    write(folder, "config.json", eos_token_id=7)
    write(folder, "generation_config.json", eos_token_id=8)
    assert Tokens.load(folder).stop == {0, 8}
    (folder / "generation_config.json").unlink()
    assert Tokens.load(folder).stop == {0, 7}


def test_the_end_of_a_model_of_pictures_and_words(endless: Path) -> None:
    write(endless, "config.json", eos_token_id=None, text_config={"eos_token_id": [4, 5]})
    assert Tokens.load(endless).stop == {4, 5}


def test_no_end_or_one_that_is_no_token(endless: Path) -> None:
    write(endless, "config.json", eos_token_id=None)
    with pytest.raises(ModelError, match=r"neither the model's tokenizer \(eos_token\) nor config.json"):
        Tokens.load(endless)
    write(endless, "config.json", eos_token_id="</s>")
    with pytest.raises(ModelError, match="eos_token_id in .*config.json is '</s>'; it must be the id of a token"):
        Tokens.load(endless)
    (endless / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="config.json holds a list, not an object"):
        Tokens.load(endless)


def test_a_gguf_file_ends_turns_and_messages_too(tmp_path: Path) -> None:
    from text.conftest import reference

    reference("llama").save_pretrained(tmp_path)
    path = write_gguf(tmp_path, tmp_path / "model.gguf", {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6})
    assert Tokens.load(path).stop == {2, 5, 6}
