"""vLLM's generation beside that of bench/gpu.py: random weights in the shape of Qwen3-0.6B, prompts and answers of 256 tokens.

`python bench/vllm_generation.py` prints a line of JSON for 64 and for 256 rows: seconds of each of three turns, and the tokens/s of the
fastest. It needs a GPU and the package vllm. Answers do not stop early and are not turned into text; prompts are not cached.
"""

import json
import os
import tempfile
import time
from importlib.metadata import version

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"], os.environ["VLLM_NO_USAGE_STATS"] = "0", "1"
os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"

import torch

import peer_gpu
from peer_gpu import ANSWER, PROMPT, VOCABULARY


def main() -> None:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        peer_gpu.model().save_pretrained(folder)
        peer_gpu.tokenizer().save_pretrained(folder)
        torch.cuda.empty_cache()
        engine = LLM(model=folder, dtype="bfloat16", gpu_memory_utilization=0.6, max_model_len=2048, enable_prefix_caching=False)
        sampling = SamplingParams(temperature=1.0, max_tokens=ANSWER, ignore_eos=True, detokenize=False)
        for rows in (64, 256):
            seconds, tokens = list[float](), 0
            for turn in range(3):
                ids = torch.randint(3, VOCABULARY, (rows, PROMPT), generator=torch.Generator().manual_seed(turn)).tolist()
                since = time.perf_counter()
                found = engine.generate([{"prompt_token_ids": row} for row in ids], sampling, use_tqdm=False)
                seconds.append(time.perf_counter() - since)
                tokens = sum(len(answer.outputs[0].token_ids) for answer in found)
            by = f"vLLM {version('vllm')}"
            print(json.dumps({"by": by, "rows": rows, "seconds": seconds, "tokens_per_s": tokens / min(seconds)}))


if __name__ == "__main__":
    main()
