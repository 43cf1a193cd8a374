"""The picture of the rooms in docs/architecture.md, made from the imports: `python docs/rooms.py` writes docs/pictures/rooms.svg.

A room stands above those that it imports. An arrow that other arrows already imply is left out.
"""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "rather"
PICTURE = Path(__file__).parent / "pictures" / "rooms.svg"
WIDTH, ROW, BOX, HIGH = 900, 78, 92, 30
"""Pixels: of the picture, from row to row, and of a box."""


def room(name: str) -> str:
    """The room that a module of rather lies in."""
    return name.split(".")[1]


def imports() -> dict[str, set[str]]:
    """Of every room, which others it imports, inside functions too."""
    names = {path.stem if path.suffix else path.name for path in SOURCE.iterdir()} - {"__init__", "__main__", "__pycache__"}
    found = {name: set[str]() for name in names}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own not in found:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rather":
                whole = [node.module] if "." in node.module else [f"rather.{alias.name}" for alias in node.names]
                found[own] |= {room(name) for name in whole} & names - {own}
    return found


def height(name: str, graph: dict[str, set[str]]) -> int:
    """Rooms below a room, along the longest way down."""
    return max((1 + height(below, graph) for below in graph[name]), default=0)


def reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    """All rooms that a room needs."""
    return graph[name].union(*(reached(below, graph) for below in graph[name]))


def draw() -> str:
    """The picture, as SVG."""
    graph = imports()
    needed = {name: reached(name, graph) for name in graph}
    arrows = [(name, to) for name in sorted(graph) for to in sorted(graph[name]) if not any(to in needed[via] for via in graph[name])]
    rows: dict[int, list[str]] = {}
    for name in sorted(graph):
        rows.setdefault(height(name, graph), []).append(name)
    top = max(rows)
    places = dict[str, tuple[float, float]]()
    for number in sorted(rows):  # a room stands about above what it needs
        below = {name: [places[to][0] for owner, to in arrows if owner == name] for name in rows[number]}
        row = sorted(rows[number], key=lambda name: (sum(below[name]) / max(len(below[name]), 1), name))
        for i, name in enumerate(row):
            places[name] = (
                BOX + (WIDTH - 2 * BOX) * (i + 0.5) / len(row) + (-1) ** number * BOX / 3,
                (top - number) * ROW + ROW / 2,
            )  # so that no arrow lies on another
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {(top + 1) * ROW}" font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8a8f98"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{(top + 1) * ROW}" fill="#fff"/>',
    ]
    for name, to in arrows:
        (x, y), (to_x, to_y) = places[name], places[to]
        begin, end = y + HIGH / 2, to_y - HIGH / 2
        bend = f"{x:.0f} {y + ROW / 2:.0f} {to_x:.0f} {to_y - ROW / 2:.0f}"
        lines.append(f'<path d="M{x:.0f} {begin:.0f}C{bend} {to_x:.0f} {end:.0f}" fill="none" stroke="#8a8f98" marker-end="url(#tip)"/>')
    for name, (x, y) in sorted(places.items()):
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{BOX}" height="{HIGH}" rx="6" fill="#eaf1f8" stroke="#3b6ea8"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="#22303f">{name}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw())
