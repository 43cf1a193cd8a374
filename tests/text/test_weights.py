import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rather.errors import ModelError
from rather.text import load, weights


def copy(tiny: Path, to: Path) -> Path:
    return Path(shutil.copytree(tiny, to / "model"))


def test_a_folder_without_weights(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        weights.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="only pickled weights"):
        weights.load(folder)


def test_an_unknown_architecture(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "nonsense"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="neither by rather .*'nonsense'.* nor by transformers"):
        load.policy(folder, torch.device("cpu"), torch.float32, False, 1.0)


def test_damaged_and_incomplete_files(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layers.1.mlp.up" not in k}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no tensor 'model.layers.1.mlp.up_proj.weight'"):
        weights.load(folder)
    save_file(state | {"model.norm.weight": torch.ones(5)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"shape \(5,\), not \(32,\)"):
        weights.load(folder)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        weights.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        weights.load(folder)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(ModelError, match="no GGUF file"):
        weights.load(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="no config.json"):
        weights.load(tmp_path)
    with pytest.raises(ModelError, match="there is no model at /nowhere"):
        load.locate("/nowhere")
    with pytest.raises(ModelError, match="the hub did not give it"):
        load.locate("somebody/something-that-is-not-there")
    with pytest.raises(ModelError, match="no model is named"):
        load.locate("")


def test_devices() -> None:
    assert load.device("cpu").type == "cpu"
    with pytest.raises(ModelError, match='set model.device to "cpu"'):
        load.device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="this machine has 0 GPUs"):
            load.device("cuda")
        assert load.device("auto").type == "cpu"


def test_sharded_files(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path)
    state = list(load_file(folder / "model.safetensors").items())
    save_file(dict(state[::2]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(state[1::2]), folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    for a, b in zip(weights.load(folder).parameters(), weights.load(tiny).parameters(), strict=True):
        assert torch.equal(a, b)


def test_gpt2_files_without_prefix(tmp_path: Path) -> None:
    from text.conftest import reference

    reference("gpt2").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    expected = [p.clone() for p in weights.load(tmp_path).parameters()]
    save_file({k.removeprefix("transformer."): v for k, v in state.items()}, tmp_path / "model.safetensors")
    for a, b in zip(expected, weights.load(tmp_path).parameters(), strict=True):
        assert torch.equal(a, b)
