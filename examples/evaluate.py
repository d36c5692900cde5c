"""Measure a saved model at every loop count, number of steps and scale of guidance: quality, compute, and what the
loops do. The same as `elt-zoo evaluate`.

    python examples/evaluate.py                                             # the bundled diffusion model of digits
    python examples/evaluate.py --model digits-maskgit --loops 1 2 4 1-4    # 1-4: from 1 loop in the first step to 4
    python examples/evaluate.py --model runs/imagenet-maskgit-ilsd/model --steps 12 24 --guidance 1 3 \\
        --inception pt_inception-2015-12-05-6726825d.pth --reference VIRTUAL_imagenet256_labeled.npz --export

Without arguments about a minute on a laptop CPU. It leaves `results.csv`, `results.json`, `results.md`, `pareto.png`
and the folder `loops` in `runs/evaluate-<model>`. Every cell of the grid is saved when it is measured: stop it whenever
you like, and run the same command again to go on, or one with more cells to add them.
"""

from elt_zoo.commands import EvaluateOptions, evaluate, run

if __name__ == "__main__":
    run(evaluate, EvaluateOptions, description=__doc__)
