"""What a run will take: each part against real tensors, peaks that were measured, and the command."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rather.config import toml
from rather.config.schema import Config
from rather.errors import ConfigError, ModelError
from rather.kernels.quantized import Bits
from rather.kernels.quantized_rows import QuantizedRows
from rather.pipeline import build, plan, sizes
from rather.pipeline.sizes import GIB, Pieces, Sizes
from rather.text import lora, weights
from rather.text.decoder import Cache
from rather.text.linear import Linear, QuantizedEmbedding, QuantizedLinear, packed
from rather.text.packing import pack
from rather.text.shape import Shape
from text.conftest import FAMILIES, reference
from text.gguf_files import write_gguf

F32, BF16 = torch.float32, torch.bfloat16
RESULTS = Path(__file__).parent.parent.parent / "bench" / "results"
LLAMA8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3 = Shape("qwen3", 151_936, 1024, 28, 16, 8, 128, 3072, 40_960, 1e-6, True, rope_theta=1e6, qk_norm=True)
"""As bench/gpu.py measured it."""
Rather = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def llama8b(tmp_path: Path) -> Path:
    """A folder that describes a model of 8 billion parameters, without its weights."""
    (tmp_path / "8b").mkdir()
    (tmp_path / "8b" / "config.json").write_text(json.dumps(LLAMA8B))
    (tmp_path / "run.toml").write_text('[model]\npath = "8b"\ndtype = "bfloat16"\n')
    return tmp_path / "8b"


def run_on(folder: Path, **sections: dict[str, Any]) -> Config:
    """Settings of a run on a CPU with the model in `folder`."""
    model = {"path": str(folder), "device": "cpu", "dtype": "float32"} | sections.pop("model", {})
    return Config.model_validate({"model": model, **sections})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "full", "bits"), [(F32, False, None), (BF16, True, None), (BF16, False, 8), (F32, False, 4)])
def test_weights_are_those_that_are_loaded(family: str, dtype: torch.dtype, full: bool, bits: Bits | None, tmp_path: Path) -> None:
    reference(family, **({} if family == "gpt2" else {"intermediate_size": 64})).save_pretrained(tmp_path)  # whole blocks of 32
    model = weights.load(tmp_path, dtype, torch.float32 if full else dtype, bits)
    held = sum(p.nbytes for p in model.parameters())
    quantized = {m.held.numbers.data_ptr(): m.held.nbytes for m in model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)}
    assert Sizes(model.shape, dtype.itemsize, full, bits).weights == held + sum(quantized.values())


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_a_file_are_those_in_its_formats(bits: Bits, tmp_path: Path) -> None:
    reference("qwen3", intermediate_size=64).save_pretrained(tmp_path)
    formats = {"": "Q5_0", "attn_v": "Q8_0", "ffn_gate": "Q4_1", "ffn_down": "F16"}
    path = write_gguf(tmp_path, tmp_path / "model.gguf", formats=formats)
    model = weights.load(path, BF16, bits=bits)
    held = {id(m.held): m.held.nbytes for m in model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)}
    assert Sizes(model.shape, 2, bits=bits, path=path).weights == sum(p.nbytes for p in model.parameters()) + sum(held.values())
    config = run_on(path, model={"weights": {8: "int8", 4: "q4"}[bits], "dtype": "bfloat16"})
    assert plan.of_run(config).phases[0].parts["weights"] == Sizes(model.shape, 2, bits=bits, path=path).weights


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_on_a_gpu(bits: Bits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference("llama", intermediate_size=64).save_pretrained(tmp_path)
    monkeypatch.setattr(weights, "laid", QuantizedRows.on)
    model = weights.load(tmp_path, BF16, BF16, bits)
    quantized = {m.held.numbers.data_ptr(): m.held.nbytes for m in model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)}
    held = Sizes(model.shape, 2, False, bits, gpu=True)
    assert held.weights == sum(p.nbytes for p in model.parameters()) + sum(quantized.values())
    assert held.logits(9) - Sizes(model.shape, 2, gpu=True).logits(9) == 2 * model.shape.vocabulary * model.shape.width, "the widened head"
    name = "int8" if bits == 8 else "q4"
    config = run_on(tmp_path, model={"device": "cuda", "dtype": "bfloat16", "weights": name})
    assert all(phase.parts["weights"] == held.weights for phase in plan.of_run(config).phases)


def test_eight_billion_by_hand(llama8b: Path) -> None:
    shape = plan._shape(llama8b)
    half, int8 = Sizes(shape, 2), Sizes(shape, 2, bits=8)
    block = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336  # q, k, v; out; gate, up, down
    head = 128256 * 4096
    norms = (2 * 32 + 1) * 4096
    assert half.numbers == 32 * block + 2 * head + norms == 8_030_261_248
    assert half.weights == 2 * half.numbers
    assert half.cache(1, 1024, 1024) == 2 * 32 * 8 * 128 * 2 * (1664 + 2112)  # room for 1312 tokens, then 1664, then 2112
    assert Sizes(shape, 2, gpu=True).cache(1, 1024, 1024) == 2**28  # 32 layers of 8 heads of 128 numbers, keys and values, 2048 tokens
    rows = [6144, 4096, 28704, 4128]  # outputs are laid out by 48
    assert int8.weights == 32 * 34 * (128 * (rows[0] + 4128 + rows[2]) + 448 * rows[3]) + 2 * 34 * head // 32 + 2 * norms
    assert half.adapter(16) == 4 * 32 * 16 * (3 * 4096 + 6144 + 4096 + 4096 + 2 * 4096 + 28672 + 14336 + 4096)


def test_adapters_are_those_that_are_made(tiny: Path) -> None:
    for blocks in (0, 1):
        model = weights.load(tiny)
        made = lora.add(model, "policy", 4, 8.0, 0, blocks)
        assert Sizes(model.shape, 4).adapter(4, blocks) == sum(p.nbytes for p in made)


@pytest.mark.parametrize(("prompt", "answer"), [(20, 12), (20, 100), (150, 60), (7, 240)])
def test_the_cache_as_it_grows(prompt: int, answer: int, tiny: Path) -> None:
    cache = Cache(weights.load(tiny), 3, 0, answer)
    most = 0
    for length in range(prompt + 1, prompt + answer + 1):
        before = cache.keys
        cache.fit(length)
        most = max(most, 2 * cache.keys.nbytes + (2 * before.nbytes if before is not cache.keys else 0))
    assert Sizes(weights.load(tiny).shape, 4).cache(3, prompt, answer) == most


def test_what_is_laid_out_for_sampling(tiny: Path) -> None:
    model = weights.load(tiny).requires_grad_(False)
    with packed(model, torch.float32):
        laid = [m.laid(torch.float32) for m in model.modules() if isinstance(m, Linear)]
    if not all(laid):
        pytest.skip("needs a C compiler: PyTorch does not say how large its own layout is")
    assert Sizes(model.shape, 4).copies == sum(x.words.nbytes for x in laid)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "full"), [(F32, False), (F32, True), (BF16, False), (BF16, True)])
@pytest.mark.parametrize("each", [1, 3])
def test_what_is_kept_for_backward(family: str, dtype: torch.dtype, full: bool, each: int, tmp_path: Path) -> None:
    reference(family).save_pretrained(tmp_path)
    model = weights.load(tmp_path, dtype, torch.float32 if full else dtype).requires_grad_(full)
    if not full:
        lora.add(model, "policy", 4, 8.0, 0)
    of = Pieces(21, 12, 2, each)
    prompts = [torch.arange(1 + i, 22 + i) for i in range(2) for _ in range(each)]
    laid = pack(prompts, [torch.arange(30 + i, 42 + i) for i in range(2 * each)], dtype)
    own, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, dict[int, int]()

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        seen.update({storage.data_ptr(): storage.nbytes()} if storage.data_ptr() not in own else {})
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model(laid.ids, laid.positions, laid, None if full else "policy", laid.chosen(laid.before))
    assert len(laid.ids) == of.tokens
    assert len(out) == of.answers * 12
    planned = Sizes(model.shape, dtype.itemsize, full).kept(of, len(out), 0 if full else 4)
    assert planned == pytest.approx(sum(seen.values()), rel=0.02)


def test_peaks_that_were_measured_on_a_gpu() -> None:
    """Of bench/gpu.py, on an H100: prompts and answers of 256 tokens; nothing of the plan was fitted to them."""
    peaks = {name: peak for name, (_, peak) in json.loads((RESULTS / "gpu.json").read_text())["measured"].items()}
    full, frozen = Sizes(QWEN3, 2, full=True, gpu=True), Sizes(QWEN3, 2, gpu=True)
    trained = full.weights + full.copies + 3 * full.weights  # a gradient and two moments
    pairs, groups, fewer = Pieces(256, 256, 16, 2), Pieces(256, 256, 4, 8), Pieces(256, 256, 2, 8)
    cache = full.cache(64, 256, 256)
    said = {
        "generation, 64 rows": frozen.weights + frozen.cache(64, 256, 256) + frozen.passing(Pieces(256, 0, 64, 1)),
        "generation, 256 rows": frozen.weights + frozen.cache(256, 256, 256) + frozen.passing(Pieces(256, 0, 256, 1)),
        "GRPO step, 8 x 8": trained + cache + full.kept(groups, 8192) + full.logits(8192, True, True),
        "GRPO step, 8 x 8, checkpointing": trained + cache + full.kept(fewer, 4096, checkpointing=True) + full.logits(4096, True),
        "DPO step, reference in it": trained + frozen.weights + full.kept(pairs, 8192) + full.logits(8192, True, True),
    }
    assert {name: peak / GIB for name, peak in said.items()} == pytest.approx({name: peaks[name] for name in said}, rel=0.08)


def test_phases_hold_what_learners_need(tiny: Path) -> None:
    def parts(learner: str, **sections: dict[str, Any]) -> dict[str, dict[str, float]]:
        train = {"learner": learner, "micro_batch_tokens": 400} | sections.pop("train", {})
        found = plan.of_run(run_on(tiny, train=train, sample={"max_tokens": 50}, **sections), 150)
        return {phase.name: phase.parts for phase in found.phases}

    own = Sizes(weights.load(tiny).shape, 4)
    adapter, two, ppo = own.adapter(16), Pieces(100, 50, 2, 2), parts("ppo", train={"reward": "labels"})
    dpo = parts("dpo")
    assert dpo["training"]["activations"] == pytest.approx(1.3 * own.kept(two, 200, 16)), "two comparisons of 200 tokens"
    assert dpo["training"]["gradient"] == adapter
    assert dpo["training"]["AdamW"] == 2 * adapter
    assert "AdamW" not in dpo["sampling"]
    assert ppo["sampling"]["adapters"] == 2 * adapter, "the policy's and the reward model's"
    assert ppo["sampling"]["AdamW"] == ppo["training"]["AdamW"] == 2 * (adapter + 4 * 33 * 256), "the critic's, too"
    paid = parts("grpo", train={"reward": "model"}, judge={"checkpoint": str(tiny)})
    assert paid["sampling"]["reward model"] == own.weights, "one of its own"
    assert parts("reward")["training"].keys() == dpo["training"].keys() - {"logits"}
    head = parts("reward", reward={"kind": "head"})
    assert head["reading"].keys() == {"process", "weights", "weights laid out for sampling", "activations"}, "no adapter and no gradient"
    assert "training" not in head
    assert {"reading", "training"} <= parts("reward", reward={"start": "head"}).keys()
    assert "scoring" in dpo
    assert "scoring" not in parts("dpo", dpo={"loss": "simpo"}), "there is no reference"
    assert "scoring" not in parts("sft")
    full = parts("grpo", model={"train": "full"})["training"]
    assert full["weights"] == 2 * own.weights
    assert full["gradient"] == own.weights
    part = Pieces(100, 50, 1, 6)  # of eight answers to a prompt six fit
    assert full["activations"] == pytest.approx(1.3 * replace(own, full=True).kept(part, 300))
    less = parts("grpo", model={"train": "full", "gradient_checkpointing": True})["training"]
    assert less["activations"] < 0.8 * full["activations"]
    assert "training" not in parts("zeroth")
    assert parts("zeroth", zeroth={"space": "low_rank"})["sampling"]["what is perturbed"] == 3 * own.weights


def test_what_has_no_plan_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="a plan is of language models"):
        plan.of_run(run_on(tiny, control={"env": "CartPole-v1"}))
    with pytest.raises(ConfigError, match='no plan for model.device = "mps"'):
        plan.of_run(run_on(tiny, model={"device": "mps"}))
    with pytest.raises(ModelError, match="quantized weights stay as they are"):
        plan.of_run(run_on(tiny, model={"weights": "int8", "train": "full"}))
    with pytest.raises(ConfigError, match='no plan for zeroth.estimator = "dpo"'):
        plan.of_run(run_on(tiny, train={"learner": "zeroth"}, zeroth={"estimator": "dpo"}))


def test_another_architecture_has_no_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(ModelError, match="transformers has to read"):
        plan.of_run(run_on(tmp_path))


def test_the_guide_says_what_the_command_says(llama8b: Path) -> None:
    page = (RESULTS.parent.parent / "docs" / "guides" / "memory.md").read_text()
    for name, device, memory in (("GPU, 24 GiB", "cuda", 24), ("laptop, 16 GiB", "cpu", 16)):
        for learner in ("dpo", "grpo"):
            config = run_on(llama8b, model={"device": device, "dtype": "bfloat16"}, train={"learner": learner})
            found, (changes, better) = plan.of_run(config, 2048), plan.advice(config, 2048, memory * GIB)
            phases = {phase.name: phase.parts for phase in found.phases}
            training = phases["training"]
            learnt = sum(training[part] for part in ("adapters", "gradient", "AdamW"))
            cells = [training["weights"], learnt, phases["sampling"][plan.CACHE], training["activations"], found.needed]
            row = [name, learner.upper(), *(f"{x / GIB:.1f}" for x in cells), f"`{' '.join(changes)}`", f"{better.needed / GIB:.1f}"]
            assert f"| {' | '.join(row)} |" in page


@pytest.mark.usefixtures("llama8b")
def test_the_command_plans_for_another_machine(rather: Rather) -> None:
    said = rather("doctor", "--plan", "run.toml", "model.device=cuda", "--memory", "24", code=1).stdout
    assert "if the longest prompt with its answer has 2,048 tokens" in said
    assert "│ weights                  │ 14.96   │ 14.96    │" in said
    assert "does not fit: the run takes 33.29 GiB, most of it while training; 24.00 GiB are there; with " in said
    advice = said.partition("; with ")[2].partition(" it takes ")
    more = rather("doctor", "--plan", "run.toml", "model.device=cuda", "--memory", "24", *advice[0].split()).stdout
    assert f"fits: the run takes {advice[2].split()[0]} GiB" in more, "with what was advised"
    assert rather("doctor", "--plan", "run.toml", "--memory", "0.1", code=1).stdout.count("GiB are there") == 1
    assert "needs the run's TOML file" in rather("doctor", "--plan", code=2).stderr


@pytest.mark.usefixtures("llama8b")
def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(rather: Rather, tmp_path: Path) -> None:
    (tmp_path / "8b" / "config.json").write_text(json.dumps(LLAMA8B | {"vocab_size": 2**31 - 1}))
    said = rather("sample", "run.toml", code=2).stderr
    assert "error: the weights of 8b take 32781.00 GiB" in said.replace("\n", " ")
    assert "but this machine has" in said.replace("\n", " ")


def test_weights_that_just_fit_are_not_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Sizes(weights.load(tiny).shape, 4).weights
    monkeypatch.setattr(sizes, "memory", lambda on: (0.0, float(held)))
    build.base_policy(run_on(tiny))
    monkeypatch.setattr(sizes, "memory", lambda on: (0.0, held - 1.0))
    with pytest.raises(ModelError, match="take a smaller model"):
        build.base_policy(run_on(tiny))


@pytest.mark.slow
def test_a_peak_that_is_measured(smollm2: Path, tmp_path: Path) -> None:
    """Of two steps of DPO and all that comes before and after, in a process of its own."""
    words = ["dog", "cat", "sun", "car", "man", "tree", "book"]
    rows = [
        {"prompt": " ".join(words[(i + j * j) % 7] for j in range(400 + i)), "split": "train" if i < 4 else "held_out"} for i in range(6)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f'[model]\npath = "{smollm2}"\ndevice = "cpu"\ndtype = "bfloat16"', '[data]\nprompts = "prompts.jsonl"']
    lines += ["[sample]\nmax_tokens = 48\ntemperature = 2.0\nbatch_size = 4", "[train]\nsteps = 2\nbatch_size = 4"]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    code = "import sys; from rather.cli.app import app; app(sys.argv[1:], standalone_mode=False)"
    code += "; from rather.learners.train import peak_gib; print(peak_gib())"
    found = subprocess.run([sys.executable, "-c", code, "loop", "run.toml"], cwd=tmp_path, check=True, capture_output=True, text=True)
    said = plan.of_run(toml.load(tmp_path / "run.toml", []), 435 + 48)  # the template adds 30 tokens
    assert said.largest.name == "training"
    assert said.largest.total / GIB == pytest.approx(float(found.stdout.split()[-1]), rel=0.15)
