import sys, json, subprocess
sys.path.insert(0,"/tmp/wt/tests/web"); sys.path.insert(0,"/tmp/wt/tests")
import pytest
@pytest.mark.parametrize("i", range(8))
def test_it(tiny, tmp_path, i):
    import importlib.util
    from test_live import RUN, QUESTIONS, EPOCHS, together, quality, Store, checkpoint
    folder = tmp_path/"x"; folder.mkdir()
    rows = [{"prompt": f"question {i}?", "split": "train"} for i in range(QUESTIONS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "run.toml").write_text(RUN.format(model=tiny, learner="reward", epochs=EPOCHS))
    subprocess.run([sys.executable, "-m", "rather", "sample", "run.toml"], cwd=folder, check=True, capture_output=True)
    store = Store(str(folder / "runs" / "tiny" / "store.db"))
    together(folder, store, i % 2 == 1)
    last = checkpoint.every(folder / "runs" / "tiny" / "checkpoints" / f"reward-0")[-1]
    print("LOSS", i, quality(folder, "reward", last), file=open("/tmp/flake.out","a"))
