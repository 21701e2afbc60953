"""Time per token over the context, both axes logarithmic: training on the left, decoding on the right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kernel_bench.bench import Record
from kernel_bench.inputs import BOTH

PANELS = {
    "lightning": ("forward + backward", {"ours": "lightning", "sdpa": "softmax (PyTorch SDPA)"}),
    "decode": ("decoding", {"lightning": "lightning", "softmax": "softmax", "sdpa": "softmax (PyTorch SDPA)"}),
}
COLORS = {"lightning": "#d95f02", "softmax": "#1b6ca8", "softmax (PyTorch SDPA)": "#7a7a7a"}


def draw(records: Iterable[Record], file: Path) -> bool:
    """Write the picture; False, and no file, if there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    found = [r for r in records if r.metric == "per token" and (r.name != "lightning" or r.direction == BOTH)]
    panels = [name for name in PANELS if any(r.name == name for r in found)]
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.2), squeeze=False, layout="constrained")
    for name, axis in zip(panels, axes[0]):
        title, labels = PANELS[name]
        for who, label in labels.items():
            points = sorted((r.shape["T"], r.value) for r in found if r.name == name and r.implementation == who)
            if points:
                axis.plot(*zip(*points), marker="o", label=label, color=COLORS[label])
        axis.set(xscale="log", yscale="log", title=title, xlabel="context (tokens)")
        axis.set_ylabel("time per token (µs)" if axis is axes[0][0] else "")
        axis.set_xticks(sorted({r.shape["T"] for r in found if r.name == name}))
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t / 1024:g}k"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return True
