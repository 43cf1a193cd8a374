"""What zeroth-order optimization perturbs in a language model by default: a steering vector on the residual stream.

Shape letters: N tokens, C width, L layers, d numbers, k directions a layer, P policies.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from rather.core import Perturbation
from rather.errors import ConfigError, ModelError
from rather.kernels.quantized import Quantized
from rather.text.decoder import Several
from rather.text.packing import Packed, pack
from rather.text.transformer import Shift, Transformer
from rather.zeroth.offsets import DirectionOptions, combined

STEP = 0.1
"""How far numbers go to either side when their effect is measured."""
TOKENS = 32
"""Tokens whose logits exist at a time, for every number."""
LONGER = 10
"""How many times as long one direction becomes as another at most: one that changes nothing cannot be noticed."""


class Linalg(Protocol):
    """What is used of torch.linalg, whose functions have no types."""

    def eigh(self, x: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def qr(self, x: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def svd(self, x: Tensor, /, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]: ...

    def vector_norm(self, x: Tensor, /, *, dim: int) -> Tensor: ...


LINALG: Linalg = torch.linalg


class Steering:
    """A vector added to the residual stream after each of `layers`, at every token (Turner et al. 2023; Subramani et al. 2022).

    The d = L k numbers are its coefficients in `basis` (L, k, C), rows whose mean square length is 1, times `unit` (L,) / sqrt(k); `unit`
    is the median norm of the residual stream there. So the root mean square of a layer's numbers is the vector's length beside that of what
    it is added to, exactly where the rows are orthonormal. With `shared` there are d = k numbers, which all layers have in common.
    """

    beside, in_turn = True, False

    def __init__(self, layers: Sequence[int], basis: Tensor, unit: Tensor, shared: bool = False) -> None:
        self.layers, self.basis, self.unit, self.shared = list(layers), basis.float(), unit.float(), shared
        self.size = basis.shape[1] * (1 if shared else basis.shape[0])
        self.numbers = nn.Parameter(torch.zeros(self.size, device=basis.device))
        self.parameters = [self.numbers]
        self.how: DirectionOptions = {}

    def combined(self, perturbations: Sequence[Perturbation], weights: Sequence[float]) -> list[Tensor]:
        """sum_k w_k scale_k v_k, (d,)."""
        return [combined(self.size, perturbations, weights, **self.how).to(self.numbers.device)]

    def sync(self) -> None:
        """Nothing to do: the policy asks for the vector whenever it acts."""

    def gather(self) -> None:
        """Nothing to do: a backward pass leaves its gradient on the numbers."""

    def several(self, perturbations: Sequence[Perturbation | None]) -> Several:
        """The policy with each perturbation."""
        return Several({i: x.detach() for i, x in self.after(perturbations).items()})

    def after(self, perturbations: Sequence[Perturbation | None] = (None,)) -> dict[int, Tensor]:
        """What to add after each layer, (P, C), for the policy with each perturbation; a gradient flows to the numbers."""
        rows = torch.stack([self.numbers if p is None else self.numbers + self.combined([p], [1.0])[0] for p in perturbations])
        return self.vectors(rows)

    def vectors(self, rows: Tensor) -> dict[int, Tensor]:
        """What to add after each layer, (P, C), for P times the numbers, (P, d)."""
        each = rows.expand(len(self.layers), -1, -1) if self.shared else rows.view(len(rows), len(self.layers), -1).transpose(0, 1)
        scale = self.unit[:, None, None] / math.sqrt(self.basis.shape[1])
        return dict(zip(self.layers, (each * scale) @ self.basis, strict=True))

    def shift(self) -> Shift:
        """The same vector for all tokens."""
        return Shift(self.after())

    def save(self, folder: Path) -> None:
        """Write steering.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"numbers": self.numbers.detach(), "basis": self.basis, "unit": self.unit}
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        (folder / "steering.safetensors").write_bytes(save(tensors, {"layers": json.dumps(self.layers)}))

    def restore(self, folder: Path) -> None:
        """Become what `save` wrote, in place.

        Raises:
            ModelError: there is no steering vector, it is damaged, or it has another size.
        """
        other = self.load(folder)
        if (other.size, other.basis.shape) != (self.size, self.basis.shape):
            raise ModelError(f"the saved steering vector has {other.size} numbers for layers {other.layers}, not {self.size}")
        device = self.numbers.device
        self.layers, self.basis, self.unit = other.layers, other.basis.to(device), other.unit.to(device)
        with torch.no_grad():
            self.numbers.copy_(other.numbers)

    @classmethod
    def load(cls, folder: Path) -> "Steering":
        """Read what `save` wrote.

        Raises:
            ModelError: there is no steering vector, or it is damaged.
        """
        try:
            data = (folder / "steering.safetensors").read_bytes()
            tensors, header = load(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            basis, numbers = tensors["basis"], tensors["numbers"]
            shared = len(numbers) < basis.shape[0] * basis.shape[1]
            found = cls(json.loads(header["__metadata__"]["layers"]), basis, tensors["unit"], shared)
            with torch.no_grad():
                found.numbers.copy_(numbers)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as e:
            raise ModelError(f"{folder} holds no steering vector: {e}") from None
        return found


@torch.no_grad()
def states(
    model: Transformer, prompts: Sequence[Sequence[int]], layers: Sequence[int], answers: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """The residual stream after each of `layers` at the last token of each prompt, (L, prompts, C), float32.

    With `answers`, one to each prompt, it is the mean over the tokens that an answer's tokens are predicted from.
    """
    laid = _laid(model, prompts, [()] * len(prompts) if answers is None else answers)
    places = [p[-1:] for p in laid.prompts] if answers is None else laid.before
    last = laid.chosen(places)
    found: dict[int, Tensor] = {}

    class Tap(Shift):
        def __call__(self, block: int, x: Tensor, wanted: Tensor | None) -> Tensor:
            if block in layers:
                found[block] = (x if wanted is not None else x[last]).float()
            return x

    model(laid.ids, laid.positions, laid, None, last, Tap({}))
    parts = torch.split(torch.stack([found[layer] for layer in layers]), [len(p) for p in places], dim=1)
    return torch.stack([part.mean(1) for part in parts], dim=1)


@torch.no_grad()
def fisher(model: Transformer, space: Steering, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
    """Fisher information of the next token about the space's numbers, (d, d), a mean over the tokens of `answers`, one to each prompt.

    Numbers x lead x^T F x / 2 nats a token away from the model (KL, to second order). By central differences.
    """
    laid, head = _laid(model, prompts, answers), model.head
    weight = head.widened(torch.float32) if isinstance(head, Quantized) else head.float()
    wanted = laid.chosen(laid.before)

    def hidden(numbers: Tensor | None = None) -> Tensor:
        shift = None if numbers is None else Shift(space.vectors(numbers[None]))
        return model(laid.ids, laid.positions, laid, None, wanted, shift).float()

    axes = STEP * torch.eye(space.size, device=weight.device)
    slopes = torch.stack([(hidden(x) - hidden(-x)) / (2 * STEP) for x in axes])
    found = torch.zeros_like(axes)
    for here, uphill in zip(torch.split(hidden(), TOKENS), torch.split(slopes, TOKENS, dim=1), strict=True):
        likely, logits = torch.softmax(here @ weight.T, -1), uphill @ weight.T
        score = ((logits - (likely * logits).sum(-1, keepdim=True)) * likely.sqrt()).flatten(1)
        found += score @ score.T
    return found / len(wanted)


def _laid(model: Transformer, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Packed:
    asked, said = ([torch.tensor(x, dtype=torch.long) for x in part] for part in (prompts, answers))
    return pack(asked, said, model.dtype, device=model.device)


@dataclass(frozen=True)
class StyledAnswers:
    """The model's answers to some prompts with an instruction: `prompts`, with the instruction in them; `answers`. Token ids."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]


def steering(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int] = (),
    size: int = 0,
    contrasts: Sequence[tuple[StyledAnswers, StyledAnswers]] = (),
    answers: Sequence[Sequence[int]] = (),
) -> Steering:
    """A steering space fitted to what `model` does with `prompts` (token ids).

    `layers`: by default the one three eighths up, with contrasts the middle one and that five eighths up too. `size` 0: all C
    coordinates; otherwise the first principal directions of the states. `contrasts`: answers to the first prompts with one instruction,
    and with the opposite one. The difference of the mean states in which the answers are given (Chen et al. 2025, arXiv 2507.21509) and
    that of the mean states after the instruction, of equal length, make up a direction, from the second one to the first. There are as
    many numbers as contrasts, which all layers have in common. Those that change more of what the model says (`answers`, its own to the
    first prompts) are made shorter, halfway from equal length to equal KL: with the fourth root of their Fisher information.

    Raises:
        ConfigError: a layer that the model has not, or more directions than there are prompts or coordinates.
    """
    s = model.shape
    layers = list(layers) or [eighths * s.layers // 8 for eighths in ((3, 4, 5) if contrasts else (3,))]
    if min(layers) < 0 or max(layers) >= s.layers:
        raise ConfigError(f"zeroth.layers = {layers}; the model has layers 0 to {s.layers - 1}")
    if size > min(s.width, len(prompts) - 1):
        raise ConfigError(
            f"zeroth.components is {size}; {len(prompts)} prompts of width {s.width} span at most {min(s.width, len(prompts) - 1)}"
        )
    found = states(model, prompts, layers)
    unit = torch.median(LINALG.vector_norm(found, dim=-1), dim=-1).values
    if contrasts:
        own = [[states(model, prompts[: len(m.answers)], layers, m.answers).mean(1) for m in both] for both in contrasts]
        asked = [[states(model, m.prompts, layers).mean(1) for m in both] for both in contrasts]
        differences = [F.normalize(a - b, dim=-1) + F.normalize(c - d, dim=-1) for (a, b), (c, d) in zip(own, asked, strict=True)]
        q, r = LINALG.qr(torch.stack(differences, -1))
        backwards = r.diagonal(dim1=1, dim2=2)[:, None] < 0
        basis = torch.where(backwards, -q, q).transpose(1, 2)
    elif size:
        basis = LINALG.svd(found - found.mean(1, keepdim=True), full_matrices=False)[2][:, :size]
    else:
        basis = torch.eye(s.width, device=found.device).expand(len(layers), -1, -1)
    space = Steering(layers, basis, unit, shared=bool(contrasts))
    if contrasts:
        values, vectors = LINALG.eigh(fisher(model, space, prompts[: len(answers)], answers))
        values = values.clamp(min=values[-1] / LONGER**4)
        space.basis = vectors @ torch.diag((values.sqrt() * values.rsqrt().mean()).rsqrt()) @ vectors.T @ basis
    return space
