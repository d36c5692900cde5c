"""Train a tokenizer with a learned codebook: a VQGAN for images or a MAGVIT-style 3D-VQ for video. The same as
`elt-zoo train-tokenizer`.

    python examples/train_tokenizer.py                        # real digits, 16 × 16 pixels → 4 × 4 tokens
    python examples/train_tokenizer.py --data moving-digits   # clips of 8 × 16 × 16 pixels → 4 × 4 × 4 tokens
    python examples/train_tokenizer.py --data moving-digits --kind image --out runs/frames
    python examples/train_tokenizer.py --data moving-digits --inflate runs/frames/tokenizer
    python examples/train_tokenizer.py --data /data/ucf101 --kind video --preset paper --adversarial 0.1

The run goes to `runs/tokenizer-<data>-<kind>`: the tokenizer (its average, read it with `load_tokenizer`), held-out
pictures above their reconstructions, the metrics, and `summary.json` with the quality on held-out data. Run it again to
resume an interrupted run. Adversarial and perceptual terms are off by default; `--preset paper` takes the published
sizes, which want an accelerator.
"""

from elt_zoo.commands import TrainTokenizerOptions, run, train_tokenizer

if __name__ == "__main__":
    run(train_tokenizer, TrainTokenizerOptions, description=__doc__)
