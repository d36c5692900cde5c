"""Convert published weights to a folder that `elt_zoo.load` reads, optionally as a looped model. The same as
`elt-zoo convert`.

    python examples/convert.py --kind dit --weights DiT-XL-2-256x256.pt --out models/dit-xl-2
    python examples/convert.py --kind dit --weights DiT-XL-2-256x256.pt --loop-layers 7 --out models/dit-xl-2-7Nx4L
    python examples/convert.py --kind maskgit --weights maskgit_imagenet256_checkpoint --out models/maskgit
    python examples/convert.py --kind autoencoder-kl --weights sd-vae-ft-mse --out models/sd-vae

Tokenizers and autoencoders are read back with `elt_zoo.tokenizers.load_tokenizer`. It takes about as long as reading
the file. `--weights` may also be a name of `elt_zoo.pretrained.catalog()` that lives on the Hugging Face hub.
"""

from elt_zoo.commands import ConvertOptions, convert, run

if __name__ == "__main__":
    run(convert, ConvertOptions, description=__doc__)
