"""What runs on a GPU by Apple (model.device = "mps"), as far as a machine without one can tell: the plain path of PyTorch, on a CPU."""

import re
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rather
from rather import kernels
from rather.errors import ModelError
from rather.text import engine, linear, load

SOURCE = str(Path(rather.__file__).parent)
HOST = ("text/sampling.py", "text/engine.py")
"""Where numbers of 64 bits may be: with the uniforms, which stay on the host."""
OWN = {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}
"""What attention is on a CPU; on a GPU by Apple `scaled_dot_product_attention` becomes an operation of its own, or those it is made of."""


@cache
def operations() -> dict[str, tuple[str, ...]]:
    """The keys under which PyTorch has each of its operations, by its own table, which comes with it; that of `out` where one has those."""
    import torchgen

    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    found: dict[str, tuple[str, ...]] = {}
    delegates: dict[str, str] = {}
    for entry in re.split(r"^- func: ", table.read_text(), flags=re.MULTILINE)[1:]:
        name = entry.partition("(")[0]
        keys = re.findall(r"^    ([\w, ]+): ", entry.partition("\n  dispatch:\n")[2], flags=re.MULTILINE)
        found[name] = tuple(key.strip() for some in keys for key in some.split(",")) or ("CompositeImplicitAutograd",)
        if delegate := re.search(r"^  structured_delegate: (\S+)", entry, flags=re.MULTILINE):
            delegates[name] = delegate[1]
    return found | {name: (*found[name], *found[to]) for name, to in delegates.items()}


class Watched(TorchDispatchMode):
    """Notes the operations that are called, and from where those with numbers of 64 bits are."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.wide: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").removesuffix(".default")
        if not name.startswith("profiler::"):  # what an optimizer says to one
            self.names.add(name)
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves((args, kwargs, out))):
            frame = sys._getframe()
            while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
                frame = frame.f_back  # type: ignore[assignment]
            self.wide.add("nowhere" if frame is None else frame.f_code.co_filename.removeprefix(f"{SOURCE}/"))
        return out


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither loops in C nor products of a library of the processor's."""
    monkeypatch.setattr(kernels, "library", lambda *_: None)
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(engine, "packed", lambda *_: nullcontext())


def test_every_operation_is_one_that_pytorch_has_for_apple(family, tiny: Path, plain: None, tmp_path: Path) -> None:
    folder = folder_with_words(family[1], tiny)
    model = rather.load(folder, dtype="bfloat16" if folder.name in ("llama", "gemma3") else "float32")
    pairs = rather.comparisons([{"prompt": "ab", "chosen": "xyz", "rejected": "q"}, {"prompt": "cde", "chosen": "f", "rejected": "gh"}])
    with Watched() as watched:
        model.generate(["ab", "cde"], max_tokens=6)
        model.generate(["ab", "cde"], max_tokens=6, temperature=0.7, top_p=0.9, top_k=5)
        dpo = rather.DPO(model, pairs, steps=2, adapter=rather.LoRA(rank=2))
        dpo.train()
        reward = lambda prompt, completion: float(len(completion))  # noqa: E731
        rather.GRPO(dpo.policy, ["ab"], reward=reward, group_size=2, steps=1, max_tokens=4).train()
        rather.RewardModel(model).fit(pairs, steps=2)
        rather.SFT(model, [{"prompt": "ab", "completion": "xyz"}], steps=2, adapter="full").train()
    composite = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "MPS"}
    assert not {name for name in watched.names - OWN if not composite & {*operations().get(name, ())}}
    assert len(watched.names) > 60
    assert watched.wide <= {*HOST}


def folder_with_words(folder: Path, words: Path) -> Path:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(words).save_pretrained(folder)
    return folder


def test_a_machine_without_one_says_so() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelError, match="has no GPU by Apple"):
        load.device("mps")
