"""Wrong commands: refused in one line before anything is compiled or written, with exit code 2."""

import dataclasses

import jax
import numpy as np
import pytest
from command_line import files_of, run
from PIL import Image

from elt_zoo import load, save
from elt_zoo.generator import Generator
from elt_zoo.tokenizers import AutoencoderKLConfig, VQ3DConfig, VQGANConfig, save_tokenizer

# A command, and a part of what it says. `{here}` is a folder with:
# file (a file), foreign (a folder of something else), empty, images (class folders), latents and grey (models of
# other things than digits), and vqgan, vq3d, kl, patches (tokenizers).
TRAIN = """
--steps 0                                        | `--steps 0` must be at least 1
--steps -5                                       | must be at least 1
--steps many                                     | many
--batch-size 0                                   | `--batch-size 0` must be at least 1
--batch-size 100000                              | --batch-size 100000
--batch-size 6 --accumulation 4                  | must be a multiple of `--accumulation 4`
--accumulation 0                                 | `--accumulation 0` must be at least 1
--accumulation -1                                | must be at least 1
--checkpoint-every 0                             | `--checkpoint-every 0` must be at least 1
--keep 0                                         | `--keep 0` must be at least 1
--keep-every-steps 750                           | `--keep-every-steps 750` must be a multiple of `--checkpoint-every
--copy-checkpoints /disk/run                     | must be `gs://bucket/run` or `s3://bucket/run`
--keep-every-hours nan                           | `--keep-every-hours nan` must be a positive number
--log-every 0                                    | `--log-every 0` must be at least 1
--log-every -3                                   | must be at least 1
--evaluate-every 0                               | `--evaluate-every 0` must be at least 1
--workers -1                                     | `--workers -1` must be 0 or more
--max-unreadable -1                              | `--max-unreadable -1`
--label-drop 1.5                                 | must be in [0, 1]
--label-drop nan                                 | must be in [0, 1]
--learning-rate 0                                | must be a positive number
--learning-rate -1                               | must be a positive number
--learning-rate nan                              | must be a positive number
--learning-rate inf                              | must be a positive number
--ema-decay 1                                    | must be in [0, 1)
--ema-decay nan                                  | must be in [0, 1)
--min-loops 0                                    | `--min-loops 0` must be at least 1
--min-loops 9                                    | min_loops
--grow-from 0                                    | `--grow-from 0` must be at least 1
--grow-from 4                                    | must start with fewer loops than the 4 that it grows to
--grow-from 9 --dry-run                          | `--grow-from 9`: `LoopGrowth(start_loops=9)`
--grow-from 1                                    | `--grow-from 1`: `ILSDLoss(min_loops=1, max_loops=1)` leaves no exit
--grow-from 2 --grow-until 0                     | `--grow-until 0.0` must be above 0 and below 1
--grow-from 2 --grow-until 1                     | must be above 0 and below 1
--grow-from 2 --grow-until nan                   | must be above 0 and below 1
--grow-until 0.5                                 | goes with `--grow-from`
--grow-from 2 --steps 1                          | a run of 1 step(s) has no room for both
--grow-from 2 --steps 8 --trace-steps 4 5        | `--trace-steps 4 5`: the run pauses after step 4
--student-weight 0                               | `--student-weight 0.0` must be above 0
--student-weight nan                             | must be above 0 and at most 1
--seed -1                                        | `--seed -1`
--precision float16                              | float16
--objective none                                 | none
--family gan                                     | gan
--preset elt-XXL                                 | Unknown preset 'elt-XXL'
--preset digits-maskgit                          | `--family maskgit`
--preset elt-L-4Nx4L                             | maskgit
--dim 0                                          | dim=0
--dim 30                                         | heads must divide the width
--num-layers 0                                   | num_layers=0
--num-layers 1000000                             | num_layers=1000000
--max-loops 0                                    | max_loops=0
--max-loops -4                                   | max_loops=-4
--num-heads 0                                    | num_heads=0
--patch-size 3                                   | patches must divide it
--patch-size 0                                   | patches must divide it
--dropout 1.0                                    | must be in [0, 1)
--dropout nan                                    | must be in [0, 1)
--remat all                                      | all
--noise-shift 0                                  | shift
--noise-shift nan                                | shift
--loss-bias nan                                  | loss_bias
--codebook-size 64                               | `--codebook-size` is no size of the family 'dit'
--family maskgit --codebook-size 0               | codebook_size=0
--family maskgit --codebook-size 1000000         | codebook
--family maskgit --label-smoothing 1.0           | label_smoothing
--family maskgit --label-smoothing nan           | label_smoothing
--family maskgit --patch-size 2                  | `--patch-size` is no size of the family 'maskgit'
--sampler.steps 0                                | steps=0
--sampler.guidance nan                           | guidance=nan
--sampler.clip-x0 -1                             | clip_x0
--sampler.clip-x0 nan                            | clip_x0
--sampler.temperature-bias 1                     | has no setting temperature_bias
--family maskgit --sampler.ancestral True        | has no setting ancestral
--family maskgit --sampler.steps 17              | cannot reveal 16 tokens
--family maskgit --sampler.confidence-noise nan  | confidence_noise
--family maskgit --sampler.temperature-scale nan | temperature_scale
--init-from nowhere                              | No model at 'nowhere'
--init-from digits-maskgit                       | does not fit
--init-from digits-dit --dim 32                  | does not fit
--new-classes                                    | goes with `--init-from`
--samples 0                                      | must be at least 1
--samples 5                                      | must be a multiple of the 10 classes
--samples 105                                    | must be a multiple of the 10 classes
--sample-seeds 0                                 | must be at least 1
--heldout 0                                      | must be at least 1
--fold 4                                         | UCF-101 has the splits 1, 2 and 3
--stride 0                                       | must be at least 1
--clips 0                                        | must be at least 1
--image-size 0                                   | must be at least 1
--image-size 16                                  | `--image-size 16`
--tokenizer {here}/vqgan                         | digits have their own tokens
--tokenizer nowhere --data {here}/images         | nowhere
--data nowhere                                   | There is no nowhere
--data {here}/empty                              | {here}/empty
--data {here}/file                               | {here}/file
--data {here}/foreign                            | {here}/foreign
--data {here}/images --image-size 30             | patches must divide it
--data {here}/images --tokenizer {here}/vqgan    | takes an autoencoder or none
--data {here}/images --tokenizer {here}/empty    | {here}/empty
--data {here}/images --family maskgit --tokenizer {here}/kl   | needs a tokenizer of discrete tokens
--data {here}/images --family maskgit --tokenizer {here}/vq3d | need a tokenizer of images
--data {here}/images --preset elt-dit-8Nx4L      | the folder of an autoencoder
--data {here}/images --preset mnist-dit          | has one channel, for grey images
--data {here}/images --preset tiny-ucf101        | needs `--tokenizer`
--data moving-digits --tokenizer {here}/vqgan    | need a tokenizer of video
--data moving-digits --tokenizer {here}/kl       | need a tokenizer of video
--data moving-digits --preset digits-dit         | not for clips
--out {here}/file                                | {here}/file
--out {here}/file/run                            | {here}/file
--out {here}/foreign                             | is not empty and holds no run
--out /proc/run                                  | /proc/run
--colour red                                     | colour
"""
SAMPLE = """
--model nowhere                                  | No model at 'nowhere'
--model {here}/empty                             | No model at
--model {here}/file                              | No model at
--model {here}/latents                           | has no autoencoder
--model {here}/grey --labels 3                   | knows the classes 0 to 1
--tokenizer nowhere                              | nowhere
--model digits-maskgit --tokenizer {here}/vqgan  | give the one that it was trained with
--loops 0                                        | `--loops 0` samples nothing
--loops -1                                       | samples nothing
--loops                                          | names no loop counts
--loops two                                      | two
--loops 1.5                                      | 1.5
--ramp 0 4                                       | samples nothing
--ramp 1                                         | ramp
--steps 0                                        | `--steps 0` must be at least 1
--steps -5                                       | must be at least 1
--model digits-maskgit --steps 17                | cannot reveal 16 tokens
--guidance nan                                   | must be a finite number
--guidance inf                                   | must be a finite number
--batch-size 0                                   | must be at least 1
--batch-size -2                                  | must be at least 1
--labels 11                                      | knows the classes 0 to 9
--labels -1                                      | knows the classes 0 to 9
--labels                                         | names no classes
--seed -1                                        | `--seed -1`
--out {here}/empty                               | {here}/empty
--out {here}/file/samples.png                    | {here}/file
--out {here}/samples.txt                         | .txt
--out {here}/samples                             | {here}/samples
"""
EVALUATE = """
--model nowhere                                  | No model at 'nowhere'
--model {here}/latents                           | has no autoencoder
--model {here}/grey                              | Give one of `--reference`
--model {here}/grey --reference nowhere.npz      | `--inception` is missing
--model {here}/grey --reference-data {here}/images --extractor classifier --heldout-data digits | do not fit
--tokenizer {here}/vqgan                         | tokenizer
--loops 0                                        | asks for no loop at all
--loops -1                                       | -1
--loops                                          | names no loop counts
--loops 1-                                       | is no loop schedule
--loops 0-4                                      | asks for no loop at all
--loops 4/0 --guidance 1.5                       | asks for no loop at all
--loops 4/1                                      | never run without guidance
--loops four                                     | is no loop schedule
--steps 0                                        | `--steps 0` must be at least 1
--steps -5                                       | must be at least 1
--model digits-maskgit --steps 17                | cannot reveal 16 tokens
--guidance nan                                   | must be finite numbers
--guidance inf                                   | must be finite numbers
--samples 0                                      | must be at least 1
--repeats 0                                      | `--repeats 0` must be at least 1
--batch-size 0                                   | must be at least 1
--devices 0                                      | must be at least 1
--devices 64                                     | `--devices 64`: there are 4
--batch-size 10 --devices 4                      | must be a multiple of the 4 device(s)
--seed -1                                        | `--seed -1`
--heldout 0                                      | must be at least 1
--heldout-copies 0                               | must be at least 1
--heldout-batch 0                                | must be at least 1
--heldout-data nowhere                           | There is no nowhere
--heldout-data moving-digits                     | are clips
--reference nowhere.npz                          | `--reference` has no use here
--reference-data nowhere                         | `--reference-data` has no use here
--inception nowhere.pth                          | `--inception` has no use here
--i3d nowhere.pth                                | `--i3d` has no use here
--extractor classifier                           | `--extractor` has no use here
--extractor-batch 0                              | must be at least 1
--out {here}/file                                | {here}/file
--out {here}/foreign                             | holds no evaluation
--out /proc/evaluation                           | /proc/evaluation
"""
PROFILE = """
--preset nowhere                                 | Unknown preset 'nowhere'
--preset {here}/empty                            | No model at
--loops 0                                        | must be at least 1
--loops -1                                       | must be at least 1
--batch 0                                        | must be at least 1
--steps 0                                        | must be at least 1
--precision int8                                 | int8
--remat all                                      | all
--topology v5e                                   | 'v5e' is no topology
--topology local --batch 3 --mesh.fsdp 2         | `--batch 3` must be a multiple of 4
--mesh.fsdp 8 --batch 8                          | A mesh of data=chosen, fsdp=8 does not fit the 4 device(s)
--topology local --batch 4 --accumulation 3      | `--batch 4` must be a multiple of 3
--thorough                                       | `--thorough` is for a compiled step: add `--topology`
--accumulation 2                                 | `--accumulation` is for a compiled step: add `--topology`
"""
PLAN = """
--model nowhere                                  | No model at 'nowhere'
--model {here}/grey                              | `--heldout-data` is missing
--model {here}/grey --heldout-data nowhere       | nowhere
--milliseconds 0                                 | `--milliseconds 0.0` must be a positive number
--milliseconds -4                                | must be a positive number
--milliseconds 40 nan                            | `--milliseconds nan` must be a positive number
--milliseconds soon                              | soon
--batch 0                                        | `--batch 0` must be at least 1
--steps 0                                        | must be at least 1
--steps 4 -1                                     | must be at least 1
--guidance nan                                   | must be a finite number
--samples 0                                      | `--samples 0` must be at least 1
--sets 0                                         | must be at least 1
--heldout 0                                      | must be at least 1
--seed -1                                        | `--seed -1`
--plot {here}/new.gif                            | must end in .png
--plot {here}/nowhere/new.png                    | cannot be written
--measurements {here}/file                       | {here}/file is damaged or not a JSON file
--measurements {here}/nowhere/plan.json          | cannot be written
"""
PRECOMPUTE = """
--out {here}/new                                 | data
--data nowhere --out {here}/new                  | There is no nowhere
--data {here}/empty --out {here}/new             | {here}/empty
--data {here}/images                             | out
--data {here}/images --out {here}/foreign        | {here}/foreign
--data {here}/images --out {here}/file           | {here}/file
--data {here}/images --out {here}/new --size 0   | must be at least 1
--data {here}/images --out {here}/new --batch-size 0  | must be at least 1
--data {here}/images --out {here}/new --shard-size 0  | must be at least 1
--data {here}/images --out {here}/new --workers 0     | `--workers 0`
--data {here}/images --out {here}/new --workers -1    | `--workers -1`
--data {here}/images --out {here}/new --margin 0.5    | must be at least 1
--data {here}/images --out {here}/new --margin nan    | must be at least 1
--data {here}/images --out {here}/new --max-unreadable -1 | `--max-unreadable -1`
--data {here}/images --out {here}/new --process-index 1 | must be in [0, 1)
--data {here}/images --out {here}/new --process-count 0 | must be at least 1
--data {here}/images --out {here}/new --views two     | two
--data {here}/images --out {here}/new --split test    | test
--data {here}/images --out {here}/new --tokenizer nowhere | nowhere
--data {here}/images --out {here}/new --tokenizer {here}/kl --size 33 | 33
--data moving-digits --out {here}/new            | are clips
--data digits --out {here}/new                   | copies image files
--data moving-digits --out {here}/new --tokenizer {here}/vqgan | are clips
"""
TOKENIZER = """
--steps 0                                        | must be at least 1
--batch-size 0                                   | must be at least 1
--batch-size 100000                              | --batch-size 100000
--codebook-size 0                                | must be at least 1
--learning-rate 0                                | `--learning-rate 0.0`
--learning-rate nan                              | `--learning-rate nan`
--ema-decay 1                                    | must be in [0, 1)
--seed -1                                        | `--seed -1`
--commitment nan                                 | commitment
--commitment -1                                  | commitment
--code-decay 2                                   | decay
--revive-below -1                                | `--revive-below -1.0` must be 0
--l2 nan                                         | l2
--l1 0 --l2 0                                    | l2
--adversarial -1                                 | adversarial
--adversarial nan                                | adversarial
--adversarial-start -1                           | start
--r1 -1 --adversarial 0.1                        | r1
--perceptual 1                                   | needs the network's weights
--perceptual nan                                 | perceptual
--perceptual 1 --inception nowhere.pth           | nowhere.pth
--heldout 0                                      | must be at least 1
--checkpoint-every 0                             | must be at least 1
--log-every 0                                    | must be at least 1
--kind video                                     | needs clips
--kind audio                                     | audio
--inflate {here}/vqgan                           | starts a 3D-VQ
--data moving-digits --inflate nowhere           | nowhere
--data moving-digits --inflate {here}/kl         | it must be a VQGAN
--data nowhere                                   | There is no nowhere
--data {here}/images --kind video                | {here}/images
--out {here}/file                                | {here}/file
--out {here}/foreign                             | is not empty and holds no run
"""
CONVERT = """
--kind dit --out {here}/new                                  | weights
--kind gan --weights x --out {here}/new                      | gan
--kind dit --weights nowhere --out {here}/new                | nowhere
--kind dit --weights {here}/file --out {here}/new            | of an unknown format
--kind dit --weights magvit --out {here}/new                 | were never released
--kind dit --weights {here}/empty --out {here}/new           | {here}/empty
--kind maskgit --weights {here}/file --out {here}/new        | of an unknown format
--kind maskgit-vqgan --weights {here}/file --out {here}/new --loop-layers 1 | has no layers to loop
--kind vq3d --weights nowhere --out {here}/new               | nowhere
--kind autoencoder-kl --weights nowhere --out {here}/new     | nowhere
--kind dit --weights {here}/file --out {here}/grey           | already holds a model
--kind dit --weights {here}/file --out {here}/file           | {here}/file
--kind dit --weights {here}/file --out {here}/new --loop-layers 0 | must be at least 1
--kind dit --weights {here}/file --out {here}/new --num-heads 0   | must be at least 1
--kind maskgit --weights {here}/file --out {here}/new --num-classes 0 | must be at least 1
"""
OTHERS = """
paint                                            | there is no command 'paint'
Train --steps 1                                  | there is no command 'Train'
--steps 1                                        | there is no command '--steps'
"""


def lines_of(table: str, command: str = "") -> list[tuple[str, str]]:
    parts = (line.rsplit("|", 1) for line in table.strip().splitlines())
    return [(f"{command} {arguments.strip()}".strip(), expected.strip()) for arguments, expected in parts]


WRONG = [
    *lines_of(TRAIN, "train"),
    *lines_of(SAMPLE, "sample"),
    *lines_of(EVALUATE, "evaluate"),
    *lines_of(PROFILE, "profile"),
    *lines_of(PLAN, "plan"),
    *lines_of(PRECOMPUTE, "precompute"),
    *lines_of(TOKENIZER, "train-tokenizer"),
    *lines_of(CONVERT, "convert"),
    *lines_of(OTHERS),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return make_here(tmp_path_factory.mktemp("here"))


def make_here(root):
    """Fills the folder that the tables call `{here}`."""
    (root / "file").write_text("not a folder")
    (root / "empty").mkdir()
    (root / "foreign").mkdir()
    (root / "foreign" / "thesis.tex").write_text("")
    rng = np.random.default_rng(0)
    for index in range(20):
        folder = root / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (34, 34, 3)).astype(np.uint8)).save(folder / f"{index}.png")
    config = dataclasses.replace(load("digits-dit").config, dim=8, num_heads=1, num_layers=1, num_classes=2)
    for name, shape in (("grey", (8, 8, 1)), ("latents", (8, 8, 4))):
        sizes = dataclasses.replace(config, shape=shape)
        model = sizes.build(key=jax.random.key(0))
        save(root / name, Generator(model, sizes, metadata={"data": "letters"}))
    sizes = {"filters": 8, "channel_multipliers": (1, 1), "embedding_dim": 4, "groups": 4, "codebook_size": 16}
    key = jax.random.key(0)
    save_tokenizer(root / "vqgan", VQGANConfig(image_size=16, num_res_blocks=1, **sizes).build(key=key))
    video = VQ3DConfig(
        shape=(4, 16, 16), temporal_downsample=(True,), num_enc_res_blocks=1, num_dec_res_blocks=1, **sizes
    )
    save_tokenizer(root / "vq3d", video.build(key=key))
    kl = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, groups=4)
    save_tokenizer(root / "kl", kl.build(key=key))
    return root


@pytest.mark.parametrize(("command", "expected"), WRONG, ids=[command for command, _ in WRONG])
def test_a_wrong_command_is_refused_in_one_line(command, expected, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files_of(here)
    refused = run(*command.format(here=here).split(), check=False)
    # What a file holds is no matter of how the command is spelled.
    assert refused.code == (1 if expected == "of an unknown format" else 2), refused
    assert expected.format(here=here) in refused.errors
    assert (refused.errors.count("\n") == 1 and refused.errors.startswith("error: ")) or "╭" in refused.errors
    assert not list(tmp_path.iterdir()) and files_of(here) == before


def test_the_tables_are_read_whole():
    assert len(WRONG) >= 100 and len(set(WRONG)) == len(WRONG)
