"""GGUF files: metadata as a config.json, tensors under the names that Hugging Face gives them."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rather.errors import ModelError
from rather.kernels.quantized import BLOCK, Blocks, Form
from rather.text.files import rope
from rather.text.files.fields import Fields
from rather.text.files.stored import Stored
from rather.text.shape import Shape

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{i}.input_layernorm",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "attn_q": "model.layers.{i}.self_attn.q_proj",
    "attn_k": "model.layers.{i}.self_attn.k_proj",
    "attn_v": "model.layers.{i}.self_attn.v_proj",
    "attn_output": "model.layers.{i}.self_attn.o_proj",
    "attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "ffn_up": "model.layers.{i}.mlp.up_proj",
    "ffn_down": "model.layers.{i}.mlp.down_proj",
}
GEMMA = NAMES | {
    "ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}
OLMO2 = NAMES | {
    "post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}
TABLES = {"gemma3_text": GEMMA, "olmo2": OLMO2}
"""What is not there is as in Llama."""
FAMILIES = {"gemma3": "gemma3_text"} | {name: name for name in ("llama", "qwen2", "qwen3", "smollm3", "olmo2", "granite")}
"""What llama.cpp calls an architecture, and its model_type in a config.json."""
TURNED = ("llama", "smollm3", "granite")  # of which rows of q and k that rotary positions turn together stand beside each other
GRANITE = {"logits_scaling": "logit_scale", "residual_multiplier": "residual_scale", "embedding_multiplier": "embedding_scale"}
FACTORS = "rope_freqs.weight"  # what the frequencies of rotary positions are divided by
VOCABULARY = tuple(f"tokenizer.ggml.{kind}" for kind in ("tokens", "token_type", "scores", "merges"))  # long, and the tokenizer's
SPACE = "\u2581"  # which SentencePiece writes for a space
HARMLESS = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")


@functools.lru_cache(maxsize=1)
def open_file(path: Path) -> Any:
    """The file's metadata and list of tensors.

    Raises:
        ModelError: there is no such file, or it is no GGUF file.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        def _build_fields(self, *where: Any) -> Any:
            self.data = self.data.view(np.ndarray)  # pyright: ignore[reportAttributeAccessIssue]  # slicing a memmap is slow
            return super()._build_fields(*where)

    try:
        return Reader(path)
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}") from None
    except (ValueError, OSError, IndexError, KeyError, OverflowError, MemoryError) as e:
        raise ModelError(f"{path} is no GGUF file that can be read: {e}") from None


def config_of(path: Path) -> dict[str, Any]:
    """What a GGUF file's metadata says, as the config.json of the same model.

    Raises:
        ModelError: it cannot be read, describes what rather does not compute, or has a key that is unknown and may change that.
    """
    reader = open_file(path)
    try:
        values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith(VOCABULARY)}
    except (ValueError, IndexError, TypeError) as e:
        raise ModelError(f"{path} has metadata that cannot be read: {e}") from None
    family = values.get("general.architecture")
    if values.get("general.type", "model") != "model" or values.get("split.count", 1) not in (0, 1):
        what = "one part of several; join them with llama-gguf-split --merge" if "split.count" in values else "no whole model"
        raise ModelError(f"{path} holds {what}")
    if family not in FAMILIES:
        raise ModelError(
            f"{path} holds the architecture {family!r}; of GGUF files rather reads {', '.join(FAMILIES)}, others as a model folder"
        )
    f = Fields({key.removeprefix(f"{family}."): value for key, value in values.items() if key.startswith(f"{family}.")}, str(path))
    tensors = {t.name for t in reader.tensors}
    width, heads = f.whole("embedding_length"), f.whole("attention.head_count")
    head_width = f.whole("attention.key_length", max(1, width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if f.whole(key, head_width) != head_width:
            raise ModelError(
                f"{path} says {family}.{key} = {f.get(key)} where heads are {head_width} wide; rather needs both to be the same"
            )
    if not f.flag("attention.causal", True):
        raise ModelError(f"{path} lets tokens see those after them ({family}.attention.causal); rather reads language models only")
    theta = f.number("rope.freq_base", 10000.0)
    ends = [values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]  # end of sequence, of turn, of message
    ends = list(dict.fromkeys(i for i in ends if i is not None))
    words = len(reader.fields["tokenizer.ggml.tokens"].data) if "tokenizer.ggml.tokens" in reader.fields else None
    biased = any(f"blk.0.{layer}.bias" in tensors for layer in ("attn_q", "attn_output"))
    config = {
        "model_type": FAMILIES[family], "architectures": [f"{'SmolLM3' if family == 'smollm3' else family.capitalize()}ForCausalLM"],
        "vocab_size": f.whole("vocab_size", words),
        "hidden_size": width, "num_hidden_layers": f.whole("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": f.whole("attention.head_count_kv", heads), "head_dim": head_width,
        "intermediate_size": f.whole("feed_forward_length"), "max_position_embeddings": f.whole("context_length"),
        "rms_norm_eps": f.number("attention.layer_norm_rms_epsilon"),
        "attention_bias": biased and family != "qwen2",
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }  # fmt: skip
    scaling = _scaling(f, reader, theta, head_width)
    if family == "gemma3":
        config |= _gemma(f, config, theta, scaling)
    else:
        config |= {"hidden_act": "silu", "rope_theta": theta, "rope_scaling": scaling, "mlp_bias": "blk.0.ffn_down.bias" in tensors}
    if family == "granite":
        config |= {ours: f.number(theirs, 1.0) for ours, theirs in GRANITE.items()}
        config["attention_multiplier"] = f.number("attention.scale", head_width**-0.5)
        if not f.flag("rope.scaling.finetuned", True):
            raise ModelError(f"{path} has no rotary positions (granite.rope.scaling.finetuned); rather needs them")
    f.refuse_unread(HARMLESS, (False, "", 0))
    return config


def _gemma(f: Fields, config: dict[str, Any], theta: float, scaling: dict[str, Any] | None) -> dict[str, Any]:
    """What llama.cpp takes for granted of Gemma 3, or has names of its own for."""
    sizes = [config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim")]
    period = f.whole("attention.sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(config["num_hidden_layers"])]
    local = {"rope_type": "default", "rope_theta": f.number("rope.freq_base_swa", 10000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": f.whole("attention.sliding_window"), "layer_types": kinds,
        "query_pre_attn_scalar": gemma_scalar(*sizes),
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, **(scaling or {"rope_type": "default"})}, "sliding_attention": local,
        },
    }  # fmt: skip


def gemma_scalar(layers: int, width: int, heads: int, head_width: int) -> int:
    """What llama.cpp divides Gemma's scores by, squared: of 27 billion parameters, in 62 layers, it is another one."""
    return width // heads if layers == 62 else head_width


def _scaling(f: Fields, reader: Any, theta: float, head_width: int) -> dict[str, Any] | None:
    """How rotary positions are scaled, as in a config.json; llama.cpp takes a factor without a type for a linear one."""
    factors = [t for t in reader.tensors if t.name == FACTORS]
    factor = f.number("rope.scaling.factor", f.number("rope.scale_linear", 1.0))
    kind = f.get("rope.scaling.type", "linear" if factor != 1 else "none")
    if kind not in ("none", "linear"):
        raise ModelError(
            f"{f.place} scales rotary positions by {kind!r}; of GGUF files rather reads linear and llama3's (rope_freqs.weight)"
        )
    if f.number("rope.scaling.attn_factor", 1.0) != 1:
        raise ModelError(f"{f.place} scales attention by {f.get('rope.scaling.attn_factor')} (rope.scaling.attn_factor); rather does not")
    linear = {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None
    if not factors:
        return linear
    if linear:
        raise ModelError(f"{f.place} scales rotary positions twice, by a linear factor and by {FACTORS}; rather does one of them")
    return rope.llama3(_read(factors[0]), theta, head_width, f"{FACTORS} in {f.place}")


def tokenizer(path: Path) -> Any:
    """The tokenizer in a GGUF file: what AutoTokenizer makes too, after reading the whole file slowly once more; but spaces are treated as
    llama.cpp does, where `transformers` goes by the architecture alone.

    Raises:
        ValueError: `transformers` does not know its kind. That raises others for a damaged one.
    """
    from tokenizers import decoders, normalizers
    from transformers import PreTrainedTokenizerFast

    with TemporaryDirectory() as alone:  # it would take a tokenizer.json in the same folder instead
        (Path(alone) / path.name).symlink_to(path.resolve())
        found: Any = PreTrainedTokenizerFast.from_pretrained(alone, gguf_file=path.name)
    kind, prefix = (open_file(path).fields.get(f"tokenizer.ggml.{key}") for key in ("model", "add_space_prefix"))
    if kind is not None and kind.contents() == "llama":  # SentencePiece's
        replace, back = normalizers.Replace(" ", SPACE), [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        prepended = prefix is None or prefix.contents()  # before every text between special tokens
        made = found.backend_tokenizer
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prepended else replace
        made.pre_tokenizer = None
        made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prepended else back)
    return found


def tensors(path: Path, shape: Shape) -> dict[str, Stored]:
    """The tensors in a GGUF file under the names of a Hugging Face file; one without such a name keeps its own.

    Raises:
        ModelError: a tensor's format cannot be read.
    """
    found = {}
    for tensor in open_file(path).tensors:
        if tensor.name == FACTORS:
            continue
        stem, _, kind = tensor.name.rpartition(".")
        index = ""
        if stem.startswith("blk.") and stem.count(".") > 1:
            _, index, stem = stem.split(".", 2)
        names = TABLES.get(shape.family, NAMES)
        name = f"{names[stem].format(i=index)}.{kind}" if stem in names else tensor.name
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(stem) if shape.family in TURNED else None
        size = tuple(int(n) for n in reversed(tensor.shape))
        form, plus = tensor.tensor_type.name, shape.norm_plus if stem.endswith("norm") else 0.0
        blocks = (BLOCKS[form][1], functools.partial(_blocks, tensor, heads)) if form in BLOCKS else None
        found[name] = Stored(size, form, functools.partial(_read, tensor, heads, plus), blocks)
    return found


BLOCKS = {
    "Q8_0": (34, Form(8, False)), "Q4_0": (18, Form(4, False)), "Q4_1": (20, Form(4, True)), "Q5_0": (22, Form(5, False)),
    "Q5_1": (24, Form(5, True)), "Q4_K": (144, Form(4, True)), "Q5_K": (176, Form(5, True)), "Q6_K": (210, Form(6, False)),
}  # fmt: skip
"""Formats that products can use as they are: bytes of a block of the file, and how they are held."""


def _read(tensor: Any, heads: int | None = None, plus: float = 0.0) -> Tensor:
    """A tensor's numbers, less `plus`: of Gemma's norms the file holds what they multiply with."""
    from gguf.quants import dequantize

    try:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
    except NotImplementedError:
        raise ModelError(f"the tensor {tensor.name} has the format {tensor.tensor_type.name}, which rather cannot read") from None
    values = _halved(values, heads)
    return values - plus if plus else values


def _blocks(tensor: Any, heads: int | None) -> Blocks:
    """A weight as the file holds it; scales and minima that it holds as products of two numbers (_K) are rounded to float16."""
    kind, rows = tensor.tensor_type.name, len(tensor.data)
    size, form = BLOCKS[kind]
    found = (_of_256 if kind.endswith("_K") else _of_32)(form, np.array(tensor.data).reshape(-1, size))
    laid = [None if x is None else _halved(torch.from_numpy(np.ascontiguousarray(x)).view(rows, -1), heads) for x in found]
    return Blocks(*laid, form.bits)  # type: ignore[arg-type]


Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Numbers (int8), scales and perhaps minima (float16)."""


def _of_32(form: Form, held: np.ndarray) -> Parts:
    """What blocks of 32 numbers hold: a scale, perhaps a minimum, the fifth bits of numbers if there are five, and numbers."""
    scales, minima = held[:, :2].view(np.float16), held[:, 2:4].view(np.float16) if form.minima else None
    if form.bits == 8:
        return held[:, 2:].view(np.int8), scales, None
    numbers = _fields(held[:, -BLOCK // 2 :], 4)
    if form.bits == 5:
        numbers |= np.unpackbits(held[:, -BLOCK // 2 - 4 : -BLOCK // 2], axis=1, bitorder="little").view(np.int8) << 4
    return numbers if form.minima else numbers - np.int8(2 ** (form.bits - 1)), scales, minima


def _of_256(form: Form, held: np.ndarray) -> Parts:
    """What blocks of 256 numbers hold: scales, and minima but for those of 6 bits, each a whole number times one that they share."""
    from gguf.quants import Q4_K

    if form.bits == 6:  # the last four bits of numbers, the first two, scales, what they are multiplied with
        low, high = _fields(held[:, :128].reshape(-1, 64), 4), _fields(held[:, 128:192].reshape(-1, 32), 2)
        scales = held[:, 192:208].view(np.int8) * held[:, 208:].view(np.float16).astype(np.float32)
        return (low | high << 4) - np.int8(32), scales.astype(np.float16), None
    both = held[:, :4].view(np.float16).astype(np.float32)
    times = [both[:, :1], -both[:, 1:]]
    scales, minima = ((by * x).astype(np.float16) for by, x in zip(times, Q4_K.get_scale_min(held[:, 4:16]), strict=True))
    numbers = _fields(held[:, -128:].reshape(-1, BLOCK), 4)
    if form.bits == 5:
        numbers |= _fields(held[:, 16:48], 1).reshape(numbers.shape) << 4
    return numbers, scales, minima


def _fields(held: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of so many bits in bytes (N, B), those of the lowest bits of each row first, as int8 (N, 8 B / bits)."""
    return np.concatenate([held >> shift & 2**bits - 1 for shift in range(0, 8, bits)], axis=1).astype(np.int8)


def _halved(values: Tensor, heads: int | None) -> Tensor:
    """GGUF interleaves the halves that rotary positions turn, in the weights of `heads`."""
    return values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape) if heads else values
