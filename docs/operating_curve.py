"""The picture in docs/concepts/hacking-alarm.md, drawn from bench/results/hacking.md: `python docs/operating_curve.py`."""

import io
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "bench" / "results" / "hacking.md", ROOT / "docs" / "pictures" / "operating-curve.svg"
ROW = re.compile(r"\| (gold on .*), x ([\d.]+) \| (\d+) of (\d+): .* \| (\d+) of (\d+): .*? \| [^|]* \| [^|]* \| (-?\d+) % \(.*\) \|")
STYLE = {
    "svg.hashsalt": "rather", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def rows() -> dict[str, list[tuple[float, float, float, float]]]:
    """Of gold on every answer and on some: thresholds, hacked runs caught, false alarms and what gold had lost by then, in %."""
    found = dict[str, list[tuple[float, float, float, float]]]()
    for line in RESULTS.read_text().splitlines():
        if match := ROW.fullmatch(line):
            name, times, caught, hacked, false, clean, lost = match.groups()
            point = float(times), 100 * int(caught) / int(hacked), 100 * int(false) / int(clean), float(lost)
            found.setdefault(name, []).append(point)
    return found


def draw() -> str:
    """The picture, as SVG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (name, points), color in zip(rows().items(), ("#2563a8", "#c8641b"), strict=True):
            times, caught, false, lost = zip(*points, strict=True)
            left.plot(false, caught, "o-", color=color, markersize=3.5, label=name)
            right.plot(lost, caught, "o-", color=color, markersize=3.5, label=name)
            for axes, at in ((left, false), (right, lost)):
                shipped = times.index(1.0)
                axes.plot(at[shipped], caught[shipped], "o", color=color, markersize=8, fillstyle="none")
        left.axvline(5, color="grey", linewidth=0.6, linestyle="--")
        left.set(xlabel="false alarms, % of clean runs", ylabel="hacked runs caught, %", ylim=(60, 100), xlim=(-0.4, 12))
        right.set(xlabel="median loss at the alarm, % of what gold had gained", ylim=(60, 100), xlim=(0, 200))
        left.legend(loc="lower right", frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


if __name__ == "__main__":
    PICTURE.write_text(draw())
