"""Encode a data set once, so that training reads tokens or latents and not pictures. The same as `elt-zoo precompute`.

    python examples/precompute.py --data /data/imagenet --tokenizer models/maskgit-vqgan --views ten_crops --out tokens
    python examples/precompute.py --data /data/imagenet --tokenizer models/sd-vae --out latents
    python examples/precompute.py --data /data/ucf101 --tokenizer models/vq3d --views one --out video-tokens
    python examples/precompute.py --data /data/imagenet --out images

Tokenizers are folders that `elt-zoo convert` or `elt_zoo.tokenizers.save_tokenizer` wrote; they decide whether ids or
means and log-variances are stored. Without a tokenizer the image files themselves are packed. Stop it at any time with
Ctrl-C and run the same command again to resume.
"""

from elt_zoo.commands import PrecomputeOptions, precompute, run

if __name__ == "__main__":
    run(precompute, PrecomputeOptions, description=__doc__)
