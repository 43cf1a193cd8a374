"""llama.cpp's side: `llama.py generate-ROWS llama[+q8_0|q4_0]`, through llama-cpp-python in the peers' environment.

Each distinct prompt is read once and its keys are shared by the sequences that go on from it, which is llama.cpp's best.
"""

import common

task, variant = common.arguments()
import numpy as np
from llama_cpp import llama_cpp as c  # pyright: ignore[reportMissingImports]
from transformers import AutoTokenizer

rows, kind = int(task.partition("-")[2]), variant.partition("+")[2] or "bf16"
tokenizer = AutoTokenizer.from_pretrained(common.MODEL)
asked = [] if task.startswith("gemma") else common.instructions(rows)
prompts = common.token_prompts(rows) if task.startswith("gemma") else [
    tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False), add_special_tokens=False)["input_ids"]
    for p in asked
]  # fmt: skip
quiet = c.llama_log_callback(lambda *_: None)  # must outlive the calls
c.llama_log_set(quiet, None)
c.llama_backend_init()
model = c.llama_model_load_from_file(str(common.FILES[kind]).encode(), c.llama_model_default_params())
vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
how = c.llama_context_default_params()
how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max, how.n_threads, how.n_threads_batch = rows * 192, 2048, 512, rows, 2, 2
how.kv_unified = True
context = c.llama_init_from_model(model, how)
batch = c.llama_batch_init(2048, 0, 1)
chance = np.random.default_rng(0)


def run(tokens: list[tuple[int, int, int, bool]]) -> np.ndarray:
    """Forward tokens given as (token, position, sequence, whether its logits are wanted); returns those logits."""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, position, 1, sequence, wanted
    assert c.llama_decode(context, batch) == 0
    which = [i for i, token in enumerate(tokens) if token[3]]
    return np.stack([np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (vocabulary,)) for i in which])


def draw(logits: np.ndarray) -> list[int]:
    """One token a row, in proportion to its chance."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = p.cumsum(-1)
    return [int(np.searchsorted(row, u * row[-1])) for row, u in zip(p, chance.random(len(p)), strict=True)]


def generate() -> None:
    """Answer everything."""
    memory = c.llama_get_memory(context)
    c.llama_memory_clear(memory, True)
    first = {tuple(p): i for i, p in reversed(list(enumerate(prompts)))}
    asked = [(t, at, row, at == len(prompt) - 1) for prompt, row in first.items() for at, t in enumerate(prompt)]
    logits = dict(zip(first, run(asked), strict=True))
    for row, prompt in enumerate(prompts):
        if first[tuple(prompt)] != row:
            c.llama_memory_seq_cp(memory, first[tuple(prompt)], row, -1, -1)
    tokens = draw(np.stack([logits[tuple(p)] for p in prompts]))
    for n in range(common.NEW - 1):
        tokens = draw(run([(t, len(prompts[row]) + n, row, True) for row, t in enumerate(tokens)]))


common.emit(f"llama.cpp {kind.upper()}", rows * common.NEW, common.Clock().time(generate), ("llama_cpp_python",))
