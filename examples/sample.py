"""Sample a saved model at any loop budget.

    python examples/sample.py                                                  # the bundled diffusion model
    python examples/sample.py --model digits-maskgit --loops 1 4
    python examples/sample.py --model runs/digits-dit-ilsd/model --ramp 1 4    # 1 loop in the first step, 4 in the last

A few seconds on a laptop CPU, most of them compilation: one program serves every loop count. The same as
`elt-zoo sample`; in Python it is three lines:

    generator = elt_zoo.load("digits-dit")
    images = generator.sample([3, 7, 7], loops=2, key=jax.random.key(0))
    save_png("samples.png", images, scale=8)  # from elt_zoo.figures
"""

from elt_zoo.commands import SampleOptions, run, sample

if __name__ == "__main__":
    run(sample, SampleOptions, description=__doc__)
