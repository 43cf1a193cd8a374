from pathlib import Path

import pytest
import torch

from rather.errors import ModelError
from rather.text import lora, weights
from rather.text.linear import Adapter, Linear
from text.test_transformer import logits, rows


def randomized(model: weights.Transformer, name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in lora.parameters(model, name):
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))


def adapted_logits(model: weights.Transformer, row: torch.Tensor, name: str | None) -> torch.Tensor:
    laid = weights_pack(row, model)
    with torch.no_grad():
        return model.logits(model(laid.ids, laid.positions, laid, name))


def weights_pack(row: torch.Tensor, model: weights.Transformer):
    from rather.text.packing import pack

    return pack([row], [row[:0]])


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(family) -> None:
    model = weights.load(family[1])
    (row,) = rows(lengths=(12,))
    (before,) = logits(model, [row])
    lora.add(model, "policy", 4, 8.0, seed=0)
    assert torch.equal(adapted_logits(model, row, "policy"), before)
    randomized(model, "policy")
    assert (adapted_logits(model, row, "policy") - before).abs().max() > 0.1
    assert torch.equal(adapted_logits(model, row, None), before), "the base is as it was"


@pytest.mark.parametrize("blocks", [0, 1])
def test_peft_loads_our_adapters_with_equal_logits(family, tmp_path: Path, blocks: int) -> None:
    from peft import PeftModel

    reference, folder = family
    model = weights.load(folder)
    lora.add(model, "policy", 4, 8.0, 0, blocks)
    randomized(model, "policy")
    lora.save(model, "policy", tmp_path / "adapter", base=str(folder))
    theirs = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    adapted = {name.partition(".lora_")[0] for name, _ in theirs.named_parameters() if ".lora_" in name}
    assert {name.split(".")[4] for name in adapted} == ({"1"} if blocks else {"0", "1"})
    for row in rows():
        with torch.no_grad():
            expected = theirs(row[None]).logits[0]
        torch.testing.assert_close(adapted_logits(model, row, "policy"), expected, atol=1e-4, rtol=0)


def test_we_load_adapters_of_peft_with_equal_logits(family, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    reference, folder = family
    model = weights.load(folder)
    names = ["c_attn", "c_proj", "c_fc"] if model.shape.is_gpt2 else ["q_proj", "v_proj", "down_proj"]
    theirs = get_peft_model(reference, LoraConfig(r=3, lora_alpha=6, target_modules=names, fan_in_fan_out=model.shape.is_gpt2)).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path / "adapter")
    lora.load(model, "policy", tmp_path / "adapter")
    for row in rows():
        with torch.no_grad():
            expected = theirs(row[None]).logits[0]
        torch.testing.assert_close(adapted_logits(model, row, "policy"), expected, atol=1e-4, rtol=0)


def test_an_adapter_for_the_last_blocks_is_read_as_one(tiny: Path, tmp_path: Path) -> None:
    model, other = weights.load(tiny), weights.load(tiny)
    assert len(lora.add(model, "policy", 4, 8.0, 0, blocks=1)) < len(lora.add(other, "all", 4, 8.0, 0))
    assert lora.first(model, "policy") == 1
    assert lora.first(other, "all") == 0
    randomized(model, "policy")
    lora.save(model, "policy", tmp_path)
    lora.load(other, "policy", tmp_path)
    assert lora.first(other, "policy") == 1
    (row,) = rows(lengths=(12,))
    assert torch.equal(adapted_logits(other, row, "policy"), adapted_logits(model, row, "policy"))
    torch.testing.assert_close(
        adapted_logits(lora.merged(model, "policy"), row, None), adapted_logits(model, row, "policy"), atol=1e-4, rtol=0
    )
    lora.save(other, "all", tmp_path)
    with pytest.raises(ModelError, match="has rank 4 and scale 2 on .*|is for layers that this run's adapter is not on: .*layers.0"):
        lora.load(model, "policy", tmp_path)


def test_adapters_that_do_not_fit(tiny: Path, tmp_path: Path) -> None:
    model = weights.load(tiny)
    with pytest.raises(ModelError, match="cannot be read"):
        lora.load(model, "policy", tmp_path)
    lora.add(model, "policy", 4, 8.0, seed=0)
    lora.save(model, "policy", tmp_path)
    other = weights.load(tiny)
    lora.add(other, "policy", 2, 8.0, seed=0)
    with pytest.raises(ModelError, match="has rank 4 and scale 2 on .*q_proj, not 2 and 4: it is another run's or for other layers"):
        lora.load(other, "policy", tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelError, match="only LORA is supported"):
        lora.load(model, "policy", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_has_the_output_and_gradients_of_its_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Linear(6, {"gate": 4, "up": 5}, bias=False)
    layer.adapters["policy"] = adapter = Adapter(6, (4, 5), (3, 3), (2.0, 2.0), generator)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    layer.weight.requires_grad_(False)
    x = torch.randn(7, 6, generator=generator).to(dtype).requires_grad_()
    low = (2.0 * x.float() @ adapter.down.t()).split(3, dim=-1)
    expected = x.float() @ layer.weight.t() + torch.cat([part @ up.t() for part, up in zip(low, adapter.up, strict=True)], dim=-1)
    found = layer(x, "policy")
    slope = torch.randn(7, 9, generator=generator)
    wanted = [x, adapter.down, *adapter.up]
    off = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.float(), expected, atol=off * 10, rtol=off)
    for a, b in zip(*(torch.autograd.grad(y, wanted, slope.to(y.dtype)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=off * 10, rtol=off)
