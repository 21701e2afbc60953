"""Speed and correctness of the kernels, in turn beside PyTorch and other libraries, in one process.

    python scripts/bench_kernels.py device=cpu [piece=linear,sparse,decode] [out=FILE.json] [plot=FILE.png] [quick=true]
    python scripts/bench_kernels.py device=cuda piece=correctness [out=DIR] [minutes=8] [only=TEXT]
    python scripts/bench_kernels.py device=cuda piece=first [seconds=280] [out=DIR]
    TRITON_INTERPRET=1 python scripts/bench_kernels.py device=cpu dry=true piece=all   # the GPU's pieces without one

On the CPU: the ratios that the project promises there. On a GPU: pieces that each end within `minutes` in a compact
table and in DIR/PIECE.json (DIR: runs/kernels). What would take longer is left out and named: no row begins that does
not fit, judged by those before it. A first word names all pieces that begin with it: `piece=correctness`,
`piece=contexts`. `piece=first` is for the first minutes on a GPU: it ends within `seconds`, checks every kernel at
small sizes by processes side by side, then times the headline cases, the most telling first; each step has a file in
DIR/first as soon as it is done, and a second call goes on with what is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from zoo.cli import answer_ctrl_c, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

from kernel_bench.run import main

if __name__ == "__main__":
    with friendly_errors():
        main(sys.argv[1:], __doc__ or "")
