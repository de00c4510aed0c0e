"""A training's progress as a picture, from what it logged."""

from __future__ import annotations

import json
from pathlib import Path

from agent.train.trainer import PROGRESS, TrainingError

_LEFT_OUT = {"step", "kind", "rate", "seconds_a_step"}
_COLUMNS = 3


def draw_curves(folder: Path, out: Path) -> None:
    """Every figure of a training's folder over its steps, as `out` (.png or .svg). Raises TrainingError."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise TrainingError("curves need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = folder / PROGRESS
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: not a training's progress ({error})") from None
    names = sorted({name for line in lines for name in line} - _LEFT_OUT)
    if not names:
        raise TrainingError(f"{path}: nothing is logged yet")
    rows = -(-len(names) // _COLUMNS)
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(4 * _COLUMNS, 2.4 * rows), squeeze=False,
                                   layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        for kind, color in (("training", "tab:blue"), ("held out", "tab:orange")):
            points = [(line["step"], line[name]) for line in lines if line["kind"] == kind and name in line]
            if points:
                axis.plot(*zip(*points, strict=True), color=color, linewidth=1.2)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(names):]:
        axis.axis("off")
    figure.supxlabel("steps; blue: while training, orange: held out", fontsize=9)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
