"""The notebook runs from top to bottom as it is."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "first_steps.ipynb"


@pytest.mark.slow
def test_it_runs_and_says_what_it_promises(tmp_path: Path) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before it is committed"
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = [out["data"]["text/plain"] for out in outputs if out["output_type"] == "execute_result"]
    assert shown[0].startswith("MeanReturn(mean=")
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not [out for out in outputs if out["output_type"] == "stream"]
    assert shown[-1] == shown[0]
    assert list(tmp_path.iterdir()) == []
