import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_files import encode, smooth, write_folders
from PIL import Image

from elt_zoo._optional import optional_import
from elt_zoo.data import (
    DataError,
    ImageSource,
    ImageTransform,
    UnreadableExample,
    UnreadableLog,
    Visit,
    decode_image,
    image_folder,
    training_batches,
)

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample" / "train"
CENTER = ImageTransform(32)
EXACT = ImageTransform(32, exact=True)


def adm_center_crop(data: bytes, size: int) -> np.ndarray:
    """ADM's `center_crop_arr`, written down once more."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def grey_levels(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def with_exif(data: bytes, payload: bytes) -> bytes:
    segment = b"Exif\0\0" + payload
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


TURNED = Image.Exif()
TURNED[0x0112] = 6

TRAPS = {
    "ordinary": encode(smooth()),
    "greyscale": encode(smooth(), mode="L"),
    "CMYK": encode(smooth(), mode="CMYK", quality=95),
    "progressive": encode(smooth(), progressive=True),
    "4:4:4": encode(smooth(), subsampling=0),
    "PNG": encode(smooth(), "PNG"),
    "PNG with alpha": encode(smooth(), "PNG", "RGBA"),
    "palette": encode(smooth(), "PNG", "P"),
    "bilevel": encode(smooth(), "PNG", "1"),
    "GIF": encode(smooth(), "GIF", "P"),
    "turned by EXIF": encode(smooth(), exif=TURNED.tobytes()),
    "damaged EXIF": with_exif(encode(smooth()), b"II*\0\xff\xff\xff\xff\x12"),
    "bytes after the end": encode(smooth()) + b"more",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # by the reference
@pytest.mark.parametrize("trap", TRAPS)
def test_everything_decodes_to_the_rgb_that_pillow_gives(trap):
    image = decode_image(TRAPS[trap])
    expected = np.asarray(Image.open(io.BytesIO(TRAPS[trap])).convert("RGB"))
    assert image.shape == (60, 80, 3) and image.flags.writeable
    np.testing.assert_array_equal(image, expected)


def test_what_is_decoded_is_the_picture():
    for trap in ("ordinary", "CMYK", "PNG with alpha", "turned by EXIF"):
        assert grey_levels(decode_image(TRAPS[trap]), smooth()) < 3, trap


def test_sixteen_bits_keep_the_upper_eight():
    grey = smooth()[..., 0].astype(np.uint16)
    with io.BytesIO() as file:
        Image.fromarray(257 * grey).save(file, "PNG")
        image = decode_image(file.getvalue())
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"an empty file \(0 bytes\)"),
        (b"no image at all", "no image; it begins with b'no image'"),
        (TRAPS["ordinary"][:20], r"no image; it begins with b'\\xff\\xd8"),
        (TRAPS["ordinary"][:-200], "cannot be decoded .*truncated"),
        (TRAPS["CMYK"][:-200], "cannot be decoded .*truncated"),
        (TRAPS["PNG"][:200], "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_damaged_files_are_told_apart_from_images(data, message, exact):
    with pytest.raises(UnreadableExample, match=message):
        ImageTransform(32, exact=exact)(data, rng())


def test_a_header_does_not_make_us_allocate_gigabytes():
    data = bytearray(TRAPS["ordinary"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(UnreadableExample, match="its header claims 65000 × 65000 pixels"):
        decode_image(bytes(data))


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_is_an_image_or_unreadable(draw):
    data = bytearray(TRAPS[draw.draw(st.sampled_from(sorted(TRAPS)))])
    for _ in range(3):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        image = CENTER(bytes(data), rng())
    except UnreadableExample:
        return
    assert image.shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(60, 80), (81, 63), (32, 32), (20, 31), (259, 131), (64, 200)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_exact_crop_is_adms(shape, format):
    data = encode(smooth(*shape), format)
    np.testing.assert_array_equal(EXACT(data, rng()), adm_center_crop(data, 32))


# Where an odd side is halved, Pillow's box filter takes 2 or 3 whole pixels and so moves by up to half of one; the fast
# filters do not. It shows on pictures as small as these, which change by 50 grey levels from pixel to pixel.
@pytest.mark.parametrize(
    ("shape", "limit"),
    [((60, 60), 1), ((63, 45), 1), ((32, 32), 1), ((20, 31), 1.5), ((256, 128), 1.5), ((259, 131), 3), ((375, 500), 3)],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_fast_crop_is_close_to_it(shape, limit, format):
    data = encode(smooth(*shape), format)
    assert grey_levels(CENTER(data, rng()), adm_center_crop(data, 32)) < limit
    fast, exact = (
        ImageTransform(32, random_crop=True, flip=True, exact=exact)(data, rng(1)) for exact in (False, True)
    )
    assert grey_levels(fast, exact) < limit


def test_large_jpegs_stay_in_place_when_the_decoder_halves_them():
    """At an odd width half a pixel would be lost at one edge, a shift of 3% of the picture here."""
    ramp = np.tile(np.linspace(0, 255, 133).astype(np.uint8)[None, :, None], (133, 1, 3))
    data = encode(ramp, quality=100)
    fast, exact = (ImageTransform(33, exact=exact)(data, rng()).astype(int) for exact in (False, True))
    assert np.abs(fast - exact)[:, 1:-1].max() <= 2


@example(height=1, width=100, size=16)
@given(height=st.integers(1, 150), width=st.integers(1, 150), size=st.integers(1, 40))
def test_any_image_gives_a_square(height, width, size):
    data = encode(smooth(height, width), "PNG" if (height + width) % 2 else "JPEG")
    for augment in (False, True):
        for exact in (False, True):
            transform = ImageTransform(size, random_crop=augment, flip=augment, exact=exact)
            if max(height, width) > 100 * min(height, width):
                with pytest.raises(UnreadableExample, match="too elongated to crop a square"):
                    transform(data, rng())
            else:
                image = transform(data, rng())
                assert image.shape == (size, size, 3) and image.dtype == np.uint8 and image.flags.c_contiguous


def test_random_crops_are_adms_in_scale_place_and_flip():
    """A ramp in both directions tells where a crop was taken, how large it was and whether it is mirrored."""
    rows, columns = np.mgrid[0:100, 0:200]
    data = encode(np.stack([rows * 2, columns, 0 * rows], axis=-1).astype(np.uint8), "PNG")
    transform = ImageTransform(80, random_crop=True, flip=True)
    crops = [transform(data, rng(seed)).astype(float) for seed in range(60)]
    kept = np.asarray([np.ptp(crop[2:-2, 40, 0]) / 2 / 76 for crop in crops])  # rows of the file per row of the crop
    assert 1.0 - 0.02 < kept.min() < 1.03 and 1.21 < kept.max() < 1.25 + 0.02  # short sides of 100 down to 80
    mirrored = np.asarray([crop[40, 5, 1] > crop[40, -5, 1] for crop in crops])
    assert 20 < mirrored.sum() < 40
    left = np.asarray([crop[40, :, 1].min() for crop in crops])
    assert left.min() < 15 and left.max() > 85


def test_crops_and_flips_are_switched_apart():
    rows, columns = np.mgrid[0:100, 0:200]
    data = encode(np.stack([rows * 2, columns, 0 * rows], axis=-1).astype(np.uint8), "PNG")
    for seed in range(20):
        centre, cropped, flipped, both = (
            ImageTransform(80, random_crop=crop, flip=flip)(data, rng(seed))
            for flip in (False, True)
            for crop in (False, True)
        )
        np.testing.assert_array_equal(centre, ImageTransform(80)(data, rng()))
        mirrored = not np.array_equal(flipped, centre)
        np.testing.assert_array_equal(flipped, centre[:, ::-1] if mirrored else centre)
        np.testing.assert_array_equal(both, cropped[:, ::-1] if mirrored else cropped)


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"`ImageTransform\(size=0\)` must be at least 1 pixel"):
        ImageTransform(0)


def test_a_folder_per_class_is_a_source(tmp_path):
    write_folders(tmp_path, {"dog": 2, "cat": 3, "ant": 1})
    (tmp_path / "cat" / "more").mkdir()
    (tmp_path / "cat" / "more" / "z.png").write_bytes(TRAPS["PNG"])
    for ignored in ("cat/.hidden.jpg", "cat/notes.txt", "readme.md"):
        (tmp_path / ignored).write_bytes(b"no image")
    (tmp_path / ".cache").mkdir()
    source = image_folder(tmp_path, CENTER, names={"ant": "an ant"})
    assert source.classes == ("ant", "cat", "dog") and source.class_names == ("an ant", "cat", "dog")
    assert (len(source), source.num_classes) == (7, 3)
    assert [source.label(index) for index in range(7)] == [0, 1, 1, 1, 1, 2, 2]
    assert source.name(4) == str(tmp_path / "cat" / "more" / "z.png") and source.encoded(4) == TRAPS["PNG"]
    example = source[5]
    assert example.images.shape == (32, 32, 3) and example.images.dtype == np.uint8 and int(example.labels) == 2
    np.testing.assert_array_equal(example.images, CENTER(encode(smooth(seed=0)), rng()))


def test_validation_takes_the_labels_of_training(tmp_path):
    write_folders(tmp_path / "train", {"ant": 1, "cat": 1, "dog": 1})
    write_folders(tmp_path / "val", {"dog": 1})
    train = image_folder(tmp_path / "train", CENTER)
    val = image_folder(tmp_path / "val", CENTER, classes=train.classes)
    assert val.label(0) == 2 and val.num_classes == 3
    with pytest.raises(DataError, match="2 of the 3 classes found are not among the 1 given: ant, cat"):
        image_folder(tmp_path / "train", CENTER, classes=["dog"])


def test_layouts_that_are_none_say_what_was_expected_and_found(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist. Expected one folder per class .*cat/1.jpg"):
        image_folder(tmp_path / "nowhere", CENTER)
    flat = tmp_path / "flat"
    flat.mkdir()
    with pytest.raises(DataError, match=r"no class folders. Expected one folder per class .* found nothing"):
        image_folder(flat, CENTER)
    for number in range(7):
        (flat / f"{number}.jpg").write_bytes(TRAPS["ordinary"])
    with pytest.raises(DataError, match=r"found 7 file\(s\) \(0.jpg, .*4.jpg and 2 more\)"):
        image_folder(flat, CENTER)
    with pytest.raises(DataError, match=r"0.jpg is a file and not a folder"):
        image_folder(flat / "0.jpg", CENTER)
    write_folders(tmp_path / "splits" / "train", {"cat": 1})
    write_folders(tmp_path / "splits" / "val", {"cat": 1})
    with pytest.raises(DataError, match=r"splits and not classes: train, val. Give the folder of one split"):
        image_folder(tmp_path / "splits", CENTER)
    (tmp_path / "splits" / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"1 of 2 class folders hold no image: dog. Fill or remove them"):
        image_folder(tmp_path / "splits" / "train", CENTER)
    with pytest.raises(ValueError, match="`ImageSource` got 1 files and 2 classes"):
        source = image_folder(tmp_path / "splits" / "val", CENTER)
        ImageSource(source._files, ["a", "b"], CENTER)


def test_a_visit_decides_the_crop(tmp_path):
    write_folders(tmp_path, {"cat": 4})
    source = image_folder(tmp_path, ImageTransform(32, random_crop=True, flip=True))
    again = image_folder(tmp_path, ImageTransform(32, random_crop=True, flip=True))
    visits = [Visit(1, epoch, seed) for epoch in range(3) for seed in range(3)]
    crops = [source.read(visit).images for visit in visits]
    assert len({crop.tobytes() for crop in crops}) == 9
    for visit, crop in zip(visits, crops, strict=True):
        np.testing.assert_array_equal(again.read(visit).images, crop)


@pytest.mark.parametrize("workers", [0, 3])
def test_damaged_files_are_skipped_counted_and_named(tmp_path, caplog, workers):
    write_folders(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "cat" / "cat_1.JPEG").write_bytes(TRAPS["ordinary"][:-200])
    (tmp_path / "dog" / "dog_2.JPEG").write_bytes(b"")
    source = image_folder(tmp_path, CENTER)
    (tmp_path / "dog" / "dog_4.JPEG").unlink()
    unreadable = UnreadableLog(limit=3)
    with caplog.at_level(logging.WARNING, "elt_zoo.data"):
        batches = training_batches(source, batch_size=5, seed=0, workers=workers, unreadable=unreadable)
        for _ in range(2):
            batch = next(batches)
            assert batch.images.shape == (5, 32, 32, 3) and batch.labels.shape == (5,)
    assert {Path(name).name for name in unreadable.names} == {"cat_1.JPEG", "dog_2.JPEG", "dog_4.JPEG"}
    for text in ("truncated", "an empty file (0 bytes)", "cannot be read (No such file or directory)"):
        assert text in caplog.text
    with pytest.raises(DataError, match="more than the 2 allowed"):
        strict = training_batches(source, batch_size=5, seed=0, workers=workers, unreadable=UnreadableLog(limit=2))
        for _ in range(2):
            next(strict)
    with pytest.raises(UnreadableExample, match="an empty file") as caught:
        source[7]
    assert caught.value.__notes__ == [str(tmp_path / "dog" / "dog_2.JPEG")]


def test_what_is_not_installed_says_how_to_install_it():
    with pytest.raises(ImportError, match=r"needs no_such_module, .*pip install 'elt_zoo\[data\]'"):
        optional_import("no_such_module")


@pytest.mark.optional
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of ImageNet is not here")
def test_real_images_decode_and_the_fast_crop_is_close():
    source = image_folder(SAMPLE, ImageTransform(256))
    assert len(source) == source.num_classes == 160
    differences = []
    for index in range(0, 160, 4):
        data = source.encoded(index)
        exact = ImageTransform(256, exact=True)(data, rng())
        np.testing.assert_array_equal(exact, adm_center_crop(data, 256))
        differences.append(grey_levels(source[index].images, exact))
    assert np.mean(differences) < 0.8
