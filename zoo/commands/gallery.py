"""Draw every attention: the weights that it gives, and its costs over the context.

    python scripts/gallery.py [OPTION=VALUE ...]

Writes OUT/gallery.md and the pictures that it shows, in OUT/gallery. A mixer is drawn by being registered; its weights
come from its own code, with random weights and inputs from a seed, so that a second run writes the same pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zoo import mixers
from zoo.costs.gallery.costs import HEADS, WIDTH, draw_costs, layer_costs
from zoo.costs.gallery.pictures import draw_mixer, draw_overview
from zoo.costs.gallery.weights import LENGTH, attention_weights, build_sample, gallery_options
from zoo.files import replace_text
from zoo.plotting import picture_formats, shown_format
from zoo.schema.arguments import Arguments, OutputFolder, read_arguments
from zoo.schema.base import FORMATS, PictureFormats, option


class Options(Arguments):
    """Options of the gallery."""

    out: OutputFolder = option("folder of the page; pictures go into its folder gallery", default="docs")
    formats: PictureFormats = option(FORMATS, default=["png"], min_length=1)


INTRODUCTION = f"""\
# Gallery

Written by `python scripts/gallery.py`: what each attention reads, and what that costs. {{contents}}

## All of them

Weights of {LENGTH} queries (downwards) for {LENGTH} keys (to the right), two heads each, with random weights and small
windows and blocks, so that the patterns can be seen. They are read off the mixers' own code. Gray is the future. White
is not read. Weights that are not normalized are divided by the largest; signed ones are red (positive) and blue.

![Attention weights of every mixer](gallery/weights.{{ending}})

Costs of one layer of width {WIDTH:,} with {HEADS} heads and default options, causal, counted in closed form by
`mixer.cost(context)`; projections are part of the FLOPs; caches in bf16, states in fp32.

![Cost curves of every mixer](gallery/costs.{{ending}})
"""


def describe(name: str) -> str:
    """Returns the first paragraph of the mixer's module."""
    text = sys.modules[mixers.get(name).__module__].__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def page(names: list[str]) -> str:
    """Returns the Markdown page."""
    contents = " ".join(f"[{name}](#{name})" for name in names)
    parts = [INTRODUCTION.format(contents=contents, ending=shown_format())]
    for name in names:
        options = gallery_options(name)
        drawn = ", ".join(f"`{key}={value}`" for key, value in options.items())
        note = f" Drawn with {drawn}." if drawn else ""
        picture = f"![Weights of {name}, and its costs](gallery/{name}.{shown_format()})"
        parts.append(f"## {name}\n\n{describe(name)}{note}\n\n{picture}\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> None:
    """Draws the plots and writes the page."""
    chosen, _ = read_arguments(Options, arguments, __doc__)
    folder, names = Path(chosen.out), mixers.names()
    weights = {name: attention_weights(*build_sample(name)) for name in names}
    costs = {name: layer_costs(name) for name in names}
    with picture_formats(chosen.formats):
        draw_overview(folder / "gallery" / "weights.png", weights)
        draw_costs(folder / "gallery" / "costs.png", costs)
        for name in names:
            files = draw_mixer(folder / "gallery" / f"{name}.png", name, weights[name], costs)
            print(f"{name:16} {', '.join(map(str, files))}", flush=True)
        replace_text(folder / "gallery.md", page(names))
    print(f"written: {folder / 'gallery.md'}")
