"""llama.cpp's greedy answers: `python llama_greedy.py FILE MAX_TOKENS`, texts as a JSON list on stdin, answers on stdout.

Run by the environment of the benchmarks, which has llama-cpp-python.
"""

import json
import sys

from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

model = Llama(sys.argv[1], n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
answers = []
for text in json.load(sys.stdin):
    ids = model.tokenize(text.encode(), add_bos=False, special=True)
    model.reset()
    said: list[int] = []
    for token in model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
        if token == model.token_eos() or len(said) == int(sys.argv[2]):
            break
        said.append(token)
    answers.append({"ids": ids, "said": said, "text": model.detokenize(said).decode(errors="replace")})
json.dump({"answers": answers, "template": model.metadata.get("tokenizer.chat_template")}, sys.stdout)
