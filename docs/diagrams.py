"""Writes the diagrams of the documentation as SVG: python docs/diagrams.py"""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).with_name("diagrams")
INK, LINE, PAPER = "#1f2937", "#64748b", "#ffffff"
GREY, BLUE, GREEN, ORANGE, PINK = "#f1f5f9", "#dbeafe", "#dcfce7", "#ffedd5", "#fce7f3"
WIDE = 168
"""Width of most boxes."""
Point = tuple[float, float]


def text(x: float, y: float, content: str, *, size: int = 14, anchor: str = "middle", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, title: str, *details: str, fill: str = GREY) -> str:
    """A rounded box with a title and smaller lines, centred."""
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{LINE}"/>'
    middle, step = x + width / 2, 17
    top = y + height / 2 - step * len(details) / 2 + 5
    lines = [text(middle, top + step * (i + 1), detail, size=12) for i, detail in enumerate(details)]
    return "\n".join([shape, text(middle, top, title, bold=True), *lines])


def column(x: float, y: float, step: float, height: float, fill: str, *boxes: tuple[str, str]) -> list[str]:
    """Boxes below each other, the next one `step` lower."""
    return [box(x, y + step * i, WIDE, height, *words, fill=fill) for i, words in enumerate(boxes)]


def arrow(*points: Point, dashed: bool = False) -> str:
    """A line through the points with a head at the last one."""
    path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6"{dash} marker-end="url(#head)"/>'


def svg(width: int, height: int, title: str, *parts: str) -> str:
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{LINE}"/></marker></defs>'
    )
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" fill="{INK}" role="img">'
    )
    background = f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>'
    return "\n".join([opening, f"<title>{escape(title)}</title>", head, background, *parts, "</svg>\n"])


def data_flow() -> str:
    """From episodes and questions to the robot, and back to the store."""
    origins = (
        ("Scripted expert", "vla record task="),
        ("Teleoperation", "vla record robot="),
        ("Other datasets", "vla convert"),
        ("Visual questions", "vla record, vla convert"),
    )
    sources = column(20, 20, 64, 50, GREEN, *origins)
    stores = column(250, 84, 128, 50, BLUE, ("Episode store", "zarr"), ("Question store", "zarr"))
    training = [
        box(480, 148, 130, 50, "Mixture", "sampling weights"),
        box(670, 139, WIDE, 68, "Processor", "image preprocessing,", "tokens, normalisation"),
        f'<rect x="656" y="246" width="196" height="158" rx="9" fill="none" stroke="{LINE}" stroke-dasharray="4 4"/>',
        text(754, 265, "vla train", size=12),
        *column(
            670, 274, 68, 50, ORANGE, ("Backbone", "vision, connector, LLM"), ("Action head", "parallel, bins, flow, …")
        ),
        box(480, 342, 130, 50, "Checkpoint", "outputs/train/best", fill=BLUE),
    ]
    commands = (("vla eval", "simulation"), ("vla deploy", "robot, control loop"), ("vla serve", "remote robots"))
    using = column(250, 282, 62, 46, PINK, *commands)
    using += column(20, 313, 0, 46, BLUE, ("Recorder", "zarr, Rerun, video"))
    arrows = [
        arrow((188, 45), (219, 45), (219, 102), (249, 102)),
        arrow((188, 109), (249, 109)),
        arrow((188, 173), (219, 173), (219, 116), (249, 116)),
        arrow((188, 237), (249, 237)),
        arrow((418, 109), (449, 109), (449, 166), (479, 166)),
        arrow((418, 237), (449, 237), (449, 180), (479, 180)),
        arrow((610, 173), (669, 173)),
        arrow((754, 207), (754, 245)),
        arrow((754, 324), (754, 341)),
        arrow((656, 367), (611, 367)),
        arrow((480, 367), (419, 367)),
        arrow((449, 367), (449, 305), (419, 305)),
        arrow((449, 367), (449, 429), (419, 429)),
        arrow((250, 305), (219, 305), (219, 336), (189, 336)),
        arrow((250, 367), (219, 367), (219, 336), (189, 336)),
        # Back to the store, around the sources.
        arrow((60, 313), (60, 274), (8, 274), (8, 10), (334, 10), (334, 83), dashed=True),
    ]
    return svg(872, 466, "Data flow", *sources, *stores, *training, *using, *arrows)


def control_loop() -> str:
    """Two inferences, their chunks, and what is executed, over time."""
    left, unit, delay, between, horizon = 170, 32, 3, 8, 16
    top = {"observation": 54, "inference": 84, "first": 130, "second": 198, "executed": 266}

    def at(step: float) -> float:
        return left + unit * step

    def cells(row: str, start: int, first: int, last: int, fill: str, dash: str = "") -> list[str]:
        style = f' stroke-dasharray="{dash}"' if dash else ""
        rest = f'y="{top[row]}" width="{unit}" height="28" fill="{fill}" stroke="{LINE}"{style}'
        return [f'<rect x="{at(start + i):g}" {rest}/>' for i in range(first, last)]

    def label(row: str, content: str, detail: str = "") -> list[str]:
        y = top[row] + (12 if detail else 19)
        return [
            text(left - 14, y, content, size=13, anchor="end", bold=True),
            *([text(left - 14, y + 15, detail, size=11, anchor="end")] if detail else []),
        ]

    def brace(row: str, start: float, stop: float, content: str, below: float = 28) -> list[str]:
        y = top[row] + below + 5
        path = f"M{at(start) + 2:g},{y} v5 H{at(stop) - 2:g} v-5"
        line = f'<path d="{path}" fill="none" stroke="{LINE}"/>'
        return [line, text(at((start + stop) / 2), y + 17, content, size=11)]

    parts = [text(at(12), 24, "Real-time chunking: loop.execution=rtc", size=15, bold=True)]
    for step in (0, delay, between, between + delay):
        line = f"M{at(step):g},44 V{top['executed'] + 34}"
        parts.append(f'<path d="{line}" stroke="{LINE}" stroke-width="0.8" stroke-dasharray="2 4"/>')
    parts += label("observation", "Observation")
    for number, step in enumerate((0, between, 2 * between), start=1):
        parts += [
            f'<circle cx="{at(step):g}" cy="{top["observation"] + 14}" r="6" fill="{BLUE}" stroke="{LINE}"/>',
            text(at(step) + 11, top["observation"] + 19, str(number), size=12, anchor="start"),
        ]
    parts += label("inference", "Inference", "policy process")
    for number, step in enumerate((0, between, 2 * between), start=1):
        parts += [
            f'<rect x="{at(step):g}" y="{top["inference"]}" width="{unit * delay}" height="26" rx="4" '
            f'fill="{ORANGE}" stroke="{LINE}"/>',
            text(at(step + delay / 2), top["inference"] + 17, f"inference {number}", size=12),
        ]
    parts += label("first", "Action chunk 1")
    parts += cells("first", 0, 0, delay, PINK)
    parts += cells("first", 0, delay, between + delay, GREEN)
    parts += cells("first", 0, between + delay, horizon, GREY, dash="3 3")
    parts += brace("first", 0, delay, "action prefix")
    parts += brace("first", between, between + delay, "committed")
    parts += brace("first", between + delay, horizon, "leftover (for guidance)")
    parts += label("second", "Action chunk 2")
    parts += cells("second", between, 0, delay, PINK)
    parts += cells("second", between, delay, horizon - 1, BLUE)
    parts += brace("second", between, between + delay, "action prefix")
    parts += label("executed", "Commands", "control loop")
    parts += cells("executed", 0, 0, delay, PAPER)
    parts += cells("executed", 0, delay, between + delay, GREEN)
    parts += cells("executed", 0, between + delay, 2 * between + delay, BLUE)
    parts += cells("executed", 0, 2 * between + delay, 23, PAPER)
    parts += brace("executed", 0, delay, "inference delay")
    parts += brace("executed", delay, between + delay, "n_action_steps (execution horizon)")
    parts += brace("executed", between + delay, 2 * between + delay, "n_action_steps")
    parts.append(arrow((at(0), 336), (at(23), 336)))
    parts.append(text(at(23) - 4, 354, "time", size=12, anchor="end"))
    note = (
        "One cell is one action. White: actions of the chunks before and after. The loop interpolates between actions."
    )
    parts.append(text(at(0), 354, note, size=12, anchor="start"))
    return svg(928, 370, "Timing of the control loop", *parts)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "data-flow.svg").write_text(data_flow())
    (FOLDER / "control-loop.svg").write_text(control_loop())


if __name__ == "__main__":
    main()
