"""Image files of every kind that folders hold, whole, cut and lying about what they are."""
from __future__ import annotations

import io
import logging
import os
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from skimage import data

from crlsr.images import (
    SUFFIXES, check_values, files, image_names, list_images, max_pixels, quantize, read_image, read_samples, to_samples, to_tensor, write_image,
)

RGB = data.coffee()[100:148, 200:264].copy()  # (48, 64, 3) uint8


def tensor(pixels: np.ndarray) -> torch.Tensor:
    "Pixels (H, W, 3) of 8 or 16 bits as the reader should give them."
    return torch.from_numpy((pixels / np.float64(np.iinfo(pixels.dtype).max)).astype(np.float32)).permute(2, 0, 1)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "crlsr.images")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "crlsr.images"]


def only(lines: list[str], path, *words: str) -> None:
    "Exactly one line was logged: it names the file and holds the words."
    assert len(lines) == 1 and lines[0].startswith(f"{path}: ") and "\n" not in lines[0], lines
    assert all(word in lines[0] for word in words), lines


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_plain_files_are_read_exactly_and_in_silence(tmp_path, log, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.dtype == torch.float32 and image.is_contiguous() and torch.equal(image, tensor(RGB))
    assert log() == []


@pytest.mark.parametrize("mode, words", [("L", "grey"), ("1", "grey"), ("LA", "alpha"), ("RGBA", "alpha"), ("P", "palette"), ("PA", "palette")])
def test_modes_agree_with_a_plain_computation(tmp_path, log, mode, words):
    image = Image.fromarray(RGB)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode[:-1])
        image.putalpha(Image.fromarray(RGB[..., 1]))
    elif mode == "PA":
        image = image.quantize(16).convert("PA")
        image.putalpha(Image.fromarray(RGB[..., 1]))
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    try:
        image.save(path)
    except (OSError, KeyError):
        pytest.skip(f"Pillow writes no {mode}")
    rgba = np.asarray(Image.open(path).convert("RGBA")).astype(float)
    expected = np.round(rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:])
    assert (read_image(path) * 255 - torch.from_numpy(expected).permute(2, 0, 1)).abs().max() < 1e-4
    only(log(), path, words)


def test_a_transparent_colour_and_a_transparent_palette_entry(tmp_path, log):
    flat = np.zeros((4, 6, 3), np.uint8)
    flat[:, :3] = (200, 10, 30)
    Image.fromarray(flat).save(tmp_path / "key.png", transparency=(200, 10, 30))
    image = read_image(tmp_path / "key.png")
    assert (image[:, :, :3] == 1).all() and (image[:, :, 3:] == 0).all()
    Image.fromarray(flat).quantize(2).save(tmp_path / "palette.png", transparency=0)
    assert {tuple(c.tolist()) for c in read_image(tmp_path / "palette.png").flatten(1).T} >= {(1.0, 1.0, 1.0)}
    assert len(log()) == 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlace", [False, True])
def test_png_of_16_bits_keeps_them_all(tmp_path, log, channels, interlace):
    deep = np.random.default_rng(channels).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        writer = png.Writer(7, 9, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16, interlace=interlace)
        (writer.write_array if interlace else writer.write)(file, deep.ravel() if interlace else deep.reshape(9, -1))
    colours = deep[..., :3] if channels > 2 else deep[..., :1].repeat(3, 2)
    if channels in (2, 4):
        alpha = deep[..., -1:] / 65535
        colours = np.round(colours * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    assert (read_image(path) - tensor(colours)).abs().max() < (2e-5 if channels in (2, 4) else 1e-7)
    only(log(), path, "read with 16 bits a channel")


def test_png_that_says_how_many_bits_are_significant(tmp_path):
    twelve = np.random.default_rng(0).integers(0, 4096, (5, 6, 3)).astype(np.uint16)
    stored = (twelve << 4) | (twelve >> 8)  # 12 bits spread over 16, as the PNG standard asks
    with open(tmp_path / "plain.png", "wb") as file:
        png.Writer(6, 5, greyscale=False, bitdepth=16).write(file, stored.reshape(5, -1))
    chunks = list(png.Reader(filename=str(tmp_path / "plain.png")).chunks())
    with open(tmp_path / "a.png", "wb") as file:
        png.write_chunks(file, [chunks[0], (b"sBIT", bytes([12, 12, 12])), *chunks[1:]])
    assert (read_image(tmp_path / "a.png") - torch.from_numpy(twelve / np.float32(4095)).permute(2, 0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["grey", "grey from white", "rgb", "rgb planes", "rgba", "rgb deflate"])
def test_tiff_of_16_bits_keeps_them_all(tmp_path, log, kind):
    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, 4 if kind == "rgba" else 3)).astype(np.uint16)
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "metadata": None}
    if kind.startswith("grey"):
        deep = deep[..., :1].repeat(3, 2)
        white = kind.endswith("white")
        tifffile.imwrite(path, 65535 - deep[..., 0] if white else deep[..., 0], photometric="miniswhite" if white else "minisblack", metadata=None)
    elif kind == "rgb planes":
        tifffile.imwrite(path, deep.transpose(2, 0, 1), planarconfig="separate", **options)
    elif kind == "rgba":
        tifffile.imwrite(path, deep, extrasamples=["unassalpha"], **options)
        alpha = deep[..., 3:] / 65535
        deep = np.round(deep[..., :3] * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    else:
        tifffile.imwrite(path, deep, compression="deflate" if "deflate" in kind else None, **options)
    assert (read_image(path) - tensor(deep)).abs().max() < 2e-5
    only(log(), path, "read with 16 bits a channel")


def test_tiff_that_only_pillow_opens_says_that_bits_are_lost(tmp_path, log):
    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "inks.tif", deep, photometric="separated", metadata=None)
    assert read_image(tmp_path / "inks.tif").shape == (3, 9, 7)
    only(log(), tmp_path / "inks.tif", "16 bits reduced to 8", "CMYK")


def test_a_tiff_without_its_number_of_bits_has_one(tmp_path):
    marks = np.random.default_rng(2).random((12, 16)) > 0.5
    tifffile.imwrite(tmp_path / "a.tif", marks, metadata=None, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert 258 not in file.pages[0].tags
    assert np.array_equal(read_samples(tmp_path / "a.tif")[..., 0], marks * np.uint8(255))
    assert np.array_equal(read_image(tmp_path / "a.tif")[0].numpy(), marks.astype(np.float32))


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
@pytest.mark.parametrize("kind, name", [
    ("int8", "signed whole numbers of 8 bits"), ("int16", "signed whole numbers of 16 bits"), ("int32", "signed whole numbers of 32 bits"),
    ("uint32", "unsigned whole numbers of 32 bits"), ("uint64", "unsigned whole numbers of 64 bits"), ("float16", "floating-point numbers of 16 bits"),
    ("float32", "floating-point numbers of 32 bits"), ("float64", "floating-point numbers of 64 bits"), ("complex64", "complex numbers of 64 bits"),
])
@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=["tiff", "bigtiff", "big-endian"])
def test_samples_that_are_no_unsigned_whole_numbers_of_8_or_16_bits_are_refused_by_name(tmp_path, kind, name, shape, options):
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, kind), metadata=None, photometric="rgb" if len(shape) == 3 else "minisblack", **options)
    for read in (read_image, read_samples):
        with pytest.raises(ValueError, match=f"a.tif: .*samples are {name}, expected unsigned whole numbers of 8 or 16 bits"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("kind, depth", [(1, np.uint8), (1, np.uint16), (2, np.uint8), (2, np.uint16), (5, np.uint8)])
def test_a_tiff_says_what_its_numbers_are(tmp_path, kind, depth):
    samples = np.random.default_rng(6).integers(0, 256, (6, 5, 3)).astype(depth)
    tifffile.imwrite(tmp_path / "a.tif", samples.view(f"int{8 * samples.itemsize}"), metadata=None, photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags[339].overwrite((kind,) * 3)
    if kind == 1:
        assert np.array_equal(read_samples(tmp_path / "a.tif"), samples)
    else:
        with pytest.raises(ValueError, match="a.tif: .*samples are (signed|complex) whole numbers of"):
            read_samples(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "deep.png", "deep.tif"])
def test_turned_photographs_stand_upright(tmp_path, log, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    expected = ImageOps.exif_transpose(_with_orientation(Image.fromarray(RGB), orientation))
    if suffix == "deep.png":
        with open(path, "wb") as file:
            png.Writer(64, 48, greyscale=False, bitdepth=16).write(file, (RGB.astype(np.uint16) * 257).reshape(48, -1))
        chunks = list(png.Reader(filename=str(path)).chunks())
        with open(path, "wb") as file:
            png.write_chunks(file, [chunks[0], (b"eXIf", exif.tobytes()[6:]), *chunks[1:]])
    elif suffix == "deep.tif":
        tifffile.imwrite(path, RGB.astype(np.uint16) * 257, photometric="rgb", metadata=None, extratags=[(274, 3, 1, orientation, True)])
    else:
        Image.fromarray(RGB).save(path, exif=exif, **{"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {}))
    image = read_image(path)
    assert image.shape == (3, expected.height, expected.width)
    assert (image - tensor(np.asarray(expected))).abs().max() < (0.05 if suffix == "jpg" else 1e-6)
    if orientation > 1:
        only(log(), path, f"EXIF orientation {orientation}")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["raw", "tiff_lzw", "tiff_deflate", "white", "png"])
def test_grey_of_16_bits_stands_upright(tmp_path, orientation, kind):
    deep, exif = np.random.default_rng(2).integers(0, 65536, (5, 7)).astype(np.uint16), Image.Exif()
    exif[274] = orientation
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    if kind in ("raw", "white"):
        white = kind == "white"
        tifffile.imwrite(path, 65535 - deep if white else deep, photometric="miniswhite" if white else "minisblack", metadata=None, extratags=[(274, 3, 1, orientation, True)])
    else:
        Image.fromarray(deep).save(path, exif=exif, **({} if kind == "png" else {"compression": kind}))
    places = ImageOps.exif_transpose(_with_orientation(Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)), orientation))
    assert torch.equal(read_image(path), tensor(deep.ravel()[np.asarray(places)][..., None].repeat(3, 2)))


def _with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[274] = orientation
    return image


def test_frames_after_the_first_are_named(tmp_path, log):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert torch.equal(read_image(tmp_path / "a.tif"), tensor(RGB))
    only(log(), tmp_path / "a.tif", "first of 2 frames")


# CMYK


def cmyk_profile() -> bytes:
    "A small ICC profile that turns every ink into a Lab colour by its own table, so that using it can be told from the plain formula."
    corners = []
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        lightness = 100 * (1 - 0.5 * k) * (1 - 0.2 * (c + m + y) / 3)
        a, b = 60 * (m - c) * (1 - k), 60 * (y - (c + m) / 2) * (1 - k)
        corners += [round(lightness * 2.55), round(a + 128), round(b + 128)]
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    lut += ramp * 4 + bytes(np.clip(corners, 0, 255).astype(np.uint8)) + ramp * 3

    def text(content: bytes) -> bytes:
        return b"text" + bytes(4) + content + b"\0"

    description = b"desc" + bytes(4) + struct.pack(">I", 9) + b"test ink\0" + bytes(4 + 4 + 2 + 1 + 67)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"A2B0": lut, b"desc": description, b"cprt": text(b"none"), b"wtpt": white}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">2I", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", 128 + len(table + body), b"test", 0x02100000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    assert len(header) == 128
    return header + table + body


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_without_a_profile(tmp_path, log, suffix):
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(path, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    inks = np.asarray(image).astype(float) / 255
    expected = (1 - inks[..., :3]) * (1 - inks[..., 3:])
    assert (read_image(path) - torch.from_numpy(expected).permute(2, 0, 1)).abs().mean() < 0.01
    only(log(), path, "CMYK, which has no profile")


def test_cmyk_with_a_profile_is_converted_by_it(tmp_path, log):
    path = tmp_path / "a.jpg"
    flat = Image.new("CMYK", (16, 16), (0, 255, 0, 0))  # full magenta
    flat.save(path, quality=100, subsampling=0, icc_profile=cmyk_profile())
    image = read_image(path)
    only(log(), path, "CMYK converted to sRGB by its embedded profile")
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    pixels = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    lightness, a, b = np.asarray(ImageCms.applyTransform(pixels, to_lab)).reshape(-1, 3).mean(0)
    expected = (100 * (1 - 0.2 / 3) * 2.55, 60, 226)  # L 93 and b -30 as the table has them; a 60 lies outside sRGB at this lightness
    assert abs(lightness - expected[0]) < 40 and 15 < a < 80 and b > 200
    plain = torch.tensor([1.0, 0.0, 1.0])
    assert (image.mean((1, 2)) - plain).abs().max() > 0.2, "the plain formula was used"


def test_cmyk_with_a_broken_profile_falls_back_and_says_so(tmp_path, log):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).convert("CMYK").save(path, icc_profile=b"no profile at all")
    read_image(path)
    only(log(), path, "has a profile that cannot be used")


def swapped_profile() -> bytes:
    "sRGB, red and blue exchanged, under another name."
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"?").replace(b"bXYZ", b"rXYZ").replace(b"?", b"bXYZ")
    return profile.replace("sRGB".encode("utf-16-be"), "turn".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "key"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_8_bits_are_converted_by_their_profile(tmp_path, log, mode, suffix):
    path, picture, options = tmp_path / f"a.{suffix}", Image.fromarray(RGB), {}
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(RGB[..., 1]))
    elif mode == "P":
        picture = picture.quantize(32)
    elif mode == "key":
        if suffix == "tif":
            return  # which knows no transparent colour
        options = {"transparency": tuple(RGB[3, 4].tolist())}
    picture.save(path, **options)
    plain = read_image(path)
    picture.save(path, icc_profile=swapped_profile(), **options)
    assert (read_image(path) - plain.flip(0)).abs().max() <= 2.5 / 255
    assert "colours of profile 'turn" in log()[-1] and "converted to sRGB" in log()[-1]
    with Image.open(path) as opened:
        assert torch.equal(to_tensor(opened)[0], read_image(path)), "a picture in memory, by the same rule"


def test_adobe_rgb_by_its_definition(log):
    "The rocket of scikit-image against gamma 563/256 and the matrices of the two standards (Adobe RGB 1998, IEC 61966-2-1)."
    path = Path(data.__file__).parent / "rocket.jpg"
    stored = (np.asarray(Image.open(path)) / 255) ** (563 / 256)
    to_xyz = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
    linear = (stored @ (np.linalg.inv([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ to_xyz).T).clip(0, 1)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    error = 255 * (read_image(path) - torch.from_numpy(expected).permute(2, 0, 1)).abs()
    assert error.mean() < 0.4 and error.max() < 1.5
    assert "Adobe RGB" in log()[-1]


def test_srgb_broken_and_unfitting_profiles_leave_the_colours_alone(tmp_path, log):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in {"srgb": srgb, "broken": b"no profile at all", "inks": cmyk_profile()}.items():
        Image.fromarray(RGB).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert torch.equal(read_image(tmp_path / f"{name}.png", say_profile=True), tensor(RGB)) and log() == []
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png", icc_profile=swapped_profile())
    assert torch.equal(read_image(tmp_path / "grey.png"), tensor(RGB[..., :1].repeat(3, 2)))
    only(log(), tmp_path / "grey.png", "grey repeated to RGB")


def test_profiles_of_16_bits_are_kept_aside_and_named_where_asked(tmp_path, log):
    deep = RGB.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", metadata=None, iccprofile=swapped_profile())
    assert torch.equal(read_image(tmp_path / "a.tif"), tensor(deep))
    only(log(), tmp_path / "a.tif", "read with 16 bits a channel")
    read_image(tmp_path / "a.tif", say_profile=True)
    assert "colour profile 'turn" in log()[-1] and "not applied (16 bits)" in log()[-1]


def test_a_transparent_grey_of_16_bits_is_white(tmp_path):
    deep = np.random.default_rng(5).integers(0, 65536, (6, 7)).astype(np.uint16)
    deep[2, 3] = deep[4, 1] = 1000
    with open(tmp_path / "a.png", "wb") as file:
        png.Writer(7, 6, greyscale=True, bitdepth=16, transparent=1000).write(file, deep)
    expected = np.where(deep == 1000, 65535, deep).astype(np.uint16)
    assert torch.equal(read_image(tmp_path / "a.png"), tensor(expected[..., None].repeat(3, 2)))
    with Image.open(tmp_path / "a.png") as picture:
        assert torch.equal(to_tensor(picture)[0][0], tensor(expected[..., None].repeat(3, 2))[0])


def test_a_file_is_spoken_of_once_in_a_process_however_often_it_is_read(tmp_path, log, caplog):
    for name in ("a.png", "b.png"):
        Image.fromarray(RGB[..., 0]).save(tmp_path / name)
    caplog.set_level(logging.WARNING, "crlsr.images")
    read_image(tmp_path / "a.png")
    caplog.set_level(logging.INFO, "crlsr.images")  # what nobody could hear was not said
    for _ in range(3):
        for name in ("a.png", "b.png"):
            read_image(tmp_path / name)
    assert log() == [f"{tmp_path / name}: grey repeated to RGB" for name in ("a.png", "b.png")]


# Files that are no images


def one_line(error: BaseException, path) -> None:
    assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and not re.search(r"0x[0-9a-f]{6}", str(error))


def test_missing_text_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_image(tmp_path / "absent.png")
    one_line(caught.value, tmp_path / "absent.png")
    for name, content in {"text.png": b"hello, I am text", "empty.png": b"", "head.png": b"\x89PNG\r\n\x1a\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read_image(tmp_path / name)
        one_line(caught.value, tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    if kind != "device":
        os.mkfifo(tmp_path / "pipe")
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "link to a pipe": tmp_path / "a.png"}[kind]
    if kind.startswith("link"):
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no regular file") as caught:
        read_image(path)
    one_line(caught.value, path)


def png_of(width: int, height: int) -> bytes:
    "A header that promises a size, and hardly any pixels."
    buffer = io.BytesIO()
    png.write_chunks(buffer, [(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9999))), (b"IEND", b"")])
    return buffer.getvalue()


def bmp_of(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "BMP")
    content = bytearray(buffer.getvalue())
    content[18:26] = struct.pack("<2i", width, height)
    return bytes(content)


@pytest.mark.parametrize("make", [png_of, bmp_of])
def test_sides_are_judged_by_the_header(tmp_path, make):
    path = tmp_path / "a.png"
    for width, height in ((16385, 16384), (10**6, 10**6)):
        path.write_bytes(make(width, height))
        with pytest.raises(ValueError, match=f"{width} x {height} pixels.*268,435,456.*--max-pixels") as caught:
            read_image(path)
        one_line(caught.value, path)
    path.write_bytes(make(14000, 14000))  # more than Pillow's own limit, less than ours
    with pytest.raises(ValueError, match="is damaged, truncated"):
        read_image(path)


def test_the_limit_of_pixels_holds_inside_and_in_threads(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    theirs = Image.MAX_IMAGE_PIXELS
    with max_pixels(48 * 64):
        assert torch.equal(read_image(tmp_path / "a.png"), tensor(RGB))
        with max_pixels(48 * 64 - 1), ThreadPoolExecutor(2) as threads, pytest.raises(ValueError, match="64 x 48 pixels, of at most 3,071"):
            list(threads.map(read_image, [tmp_path / "a.png"] * 4))
        read_image(tmp_path / "a.png")
    with pytest.raises(ZeroDivisionError), max_pixels(1):
        raise ZeroDivisionError
    read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="max_pixels: got 0"), max_pixels(0):
        pass
    assert Image.MAX_IMAGE_PIXELS == theirs


def test_a_file_too_long_for_any_image_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**26 + 8 * 101)  # a hole: takes no room
    with max_pixels(100), pytest.raises(ValueError, match="a.png: has 67,109,672 bytes"):
        read_image(tmp_path / "a.png")


LONG = "x" * 2_000_000


@pytest.mark.parametrize("kind", ["zTXt", "tEXt", "iTXt", "packed iTXt", "iCCP", "many", "after the pixels"])
def test_large_metadata_of_a_png_is_no_damage(tmp_path, log, kind):
    info, profile, path = PngImagePlugin.PngInfo(), None, tmp_path / "a.png"
    if kind in ("zTXt", "tEXt"):
        info.add_text("a", LONG, zip=kind == "zTXt")
    elif "iTXt" in kind:
        info.add_itxt("a", LONG, "de", "b", zip=kind.startswith("packed"))
    elif kind == "iCCP":
        profile = bytes(2_000_000)
    elif kind == "many":
        for i in range(80):
            info.add_text(f"a{i}", "x" * 1_000_000, zip=True)
    else:
        info.add_text("a", LONG, zip=True)
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(RGB).save(path, pnginfo=info, exif=exif, icc_profile=profile)
    if kind.startswith("after"):
        chunks = list(png.Reader(filename=str(path)).chunks())
        with open(path, "wb") as file:
            png.write_chunks(file, sorted(chunks, key=lambda chunk: (chunk[0] == b"IEND", chunk[0] == b"zTXt")))
    assert torch.equal(read_image(path), tensor(RGB[::-1, ::-1].copy()))
    only(log(), path, "metadata of more than 1 MiB left out", "EXIF orientation 3")


def test_short_metadata_stays(tmp_path, log):
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "short", zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    content = (tmp_path / "a.png").read_bytes()
    assert files._lean(content) == (content, False) and torch.equal(read_image(tmp_path / "a.png"), tensor(RGB)) and log() == []


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "deep.png":
        png.Writer(64, 48, greyscale=False, bitdepth=16).write(buffer, (RGB.astype(np.uint16) * 257).reshape(48, -1))
    elif kind == "deep.tif":
        tifffile.imwrite(buffer, RGB.astype(np.uint16) * 257, photometric="rgb", metadata=None)
    else:
        Image.fromarray(RGB).save(buffer, kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "deep.png", "deep.tif"])
def test_a_cut_file_is_an_error_or_the_whole_picture(tmp_path, kind):
    path, content = tmp_path / "a.png", encoded(kind)
    path.write_bytes(content)
    whole = read_image(path)
    cuts = sorted({int(len(content) * share) for share in np.linspace(0.01, 0.98, 25)} | {len(content) - n for n in (1, 2, 5, 20, 200)})
    for cut in cuts:
        path.write_bytes(content[:cut])
        try:
            image = read_image(path)
        except ValueError as error:
            one_line(error, path)
        else:
            assert torch.equal(image, whole), f"{kind} cut at {cut} of {len(content)} was read as another picture"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "deep.png"]), st.integers(0, 2**31), st.integers(1, 6))
def test_flipped_bytes_never_escape_as_another_error(tmp_path_factory, kind, seed, count):
    rng, content = np.random.default_rng(seed), bytearray(encoded(kind))
    for at in rng.integers(0, len(content), count):
        content[at] = rng.integers(256)
    path = tmp_path_factory.mktemp("flip") / "a.png"
    path.write_bytes(bytes(content))
    try:
        image = read_image(path)
    except ValueError as error:
        one_line(error, path)
    else:
        assert image.ndim == 3 and image.shape[0] == 3 and 0 <= image.min() and image.max() <= 1



# Folders


def test_folders_are_listed_by_name(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.tiff", "._a.png", ".a.123.partial.png", "d.txt", "e.gif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "f.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG", "c.tiff", "e.gif"]
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list_images(tmp_path / "f.png")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="is a file"):
        list_images(tmp_path / "a.jpeg")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_the_list_is_read_from_folders(tmp_path, suffix):
    kind = {".apng": "PNG", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".jp2": "JPEG2000"}.get(suffix) or Image.registered_extensions()[suffix]
    Image.fromarray(RGB).save(tmp_path / f"a{suffix}", kind)
    (path,) = list_images(tmp_path)
    assert (read_image(path) - tensor(RGB)).abs().mean() < 0.05


def test_what_a_folder_holds_besides_is_said_in_one_line(tmp_path, log):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for name in ("b.txt", "c.psd", "no suffix", "new\nline.doc", "params.json", "manifest.jsonl", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert image_names(tmp_path) == ["a.png"]
    only(log(), tmp_path, "4 files left out (4 of another suffix: b.txt, c.psd, new\\nline.doc, …)")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for _ in range(2):
        assert image_names(tmp_path) == ["a.png"]
    assert len(log()) == 2 and "7 files left out" in log()[1] and "3 no regular file: gone.png, loop.png, pipe.png" in log()[1]


def test_a_link_to_nothing_is_not_overwritten(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileExistsError, match="exists already"):
        write_image(RGB, tmp_path / "a.png", overwrite=False)
    assert (tmp_path / "a.png").is_symlink() and len(list(tmp_path.iterdir())) == 1


def test_eight_orientations_are_pillows():
    samples = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for orientation in range(1, 9):
        expected = ImageOps.exif_transpose(_with_orientation(Image.fromarray(samples), orientation))
        assert np.array_equal(files._upright(samples, orientation), np.asarray(expected))


# Pictures in memory

RNG = np.random.default_rng(0)
INTEGERS = [np.uint8, np.uint16]
SHAPES = [(5, 7), (5, 7, 1), (5, 7, 3), (2, 5, 7, 3), (2, 5, 7, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [*INTEGERS, np.float16, np.float32, np.float64])
def test_an_array_becomes_planes_and_comes_back(shape, kind):
    array = RNG.integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind) if kind in INTEGERS else RNG.random(shape).astype(kind)
    image, back = to_tensor(array)
    peak = np.iinfo(kind).max if kind in INTEGERS else 1
    columns = array.reshape(-1, *array.shape[-3:]) if array.ndim > 2 else array[None, ..., None]
    found = image.reshape(-1, *image.shape[-3:])
    for b, row, column, channel in np.ndindex(columns.shape):  # by plain loops, one value at a time
        assert found[b, channel, row, column].item() == pytest.approx(float(columns[b, row, column, channel]) / peak, rel=1e-7)
    again = back(image)
    assert again.dtype == array.dtype and np.array_equal(again, array)
    assert image.dtype == (torch.float32 if kind in INTEGERS else torch.from_numpy(array).dtype)


def test_results_of_another_size_are_rounded_and_clipped_for_integers_only():
    result = torch.tensor([-0.2, 0.1, 0.5, 1.3]).view(1, 2, 2)
    assert to_tensor(np.zeros((9, 9), np.uint8))[1](result).tolist() == [[0, 26], [128, 255]]  # 25.5 and 127.5 go to the even neighbour
    np.testing.assert_array_equal(to_tensor(np.zeros((9, 9, 1), np.float64))[1](result)[..., 0], result[0].double().numpy())


@pytest.mark.parametrize("mode, back_mode", [("RGB", "RGB"), ("L", "L"), ("1", "L"), ("P", "RGB"), ("RGBA", "RGB"), ("LA", "L"), ("CMYK", "RGB"), ("I;16", "I;16")])
def test_pictures_of_every_mode(mode, back_mode):
    picture = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    image, back = to_tensor(picture)
    expected = Image.fromarray(RGB[..., 0] if mode == "I;16" else np.asarray(picture.convert("RGBA").convert(back_mode)))
    assert image.shape == (3 if back_mode == "RGB" else 1, 48, 64)
    assert (image - torch.from_numpy(np.asarray(expected).reshape(48, 64, -1).copy()).permute(2, 0, 1) / 255).abs().max() < 1e-6
    again = back(image)
    assert again.mode == back_mode and again.size == picture.size


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_picture_is_read_upright_as_its_file_is(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        before = picture.size
        assert torch.equal(to_tensor(picture)[0], read_image(tmp_path / "a.png")) and picture.size == before


@pytest.mark.parametrize("wrong, kind, message", [
    (np.zeros((3, 8, 8)), ValueError, r"shape \(3, 8, 8\).*channels last"),
    (np.zeros((8, 8, 4), np.uint8), ValueError, "got an array of uint8.*expected no alpha"),
    (np.zeros((8, 8, 3), np.int64), ValueError, "int64.*expected uint8, uint16 or floating point"),
    (np.zeros((8, 8), bool), ValueError, "bool"),
    (np.zeros(8), ValueError, r"\(8,\)"),
    (Image.new("F", (8, 8)), ValueError, "mode F, expected 8 or 16 bits"),
    ([[1.0]], TypeError, "got list"),
    ("a.png", TypeError, "got str"),
    (None, TypeError, "got NoneType"),
])
def test_what_is_no_picture_is_refused(wrong, kind, message):
    with pytest.raises(kind, match=message) as caught:
        to_tensor(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image, message", [
    (torch.full((3, 8, 8), 100.0), "x: got values from 100 to 100, expected"),
    (torch.rand(3, 8, 8) * 4 - 2, "x: got values from"),
    (torch.zeros(3, 8, 8, dtype=torch.uint8), "x: got torch.uint8.*divided by 255"),
    (torch.full((3, 8, 8), float("nan")), "x: holds NaN"),
    (torch.rand(3, 8, 8) - torch.eye(8) / 0, "x: holds NaN or infinite"),
])
def test_values_of_another_scale_are_refused(image, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_values(image, "x")
    assert "\n" not in str(caught.value)


def test_overshoot_is_no_other_scale():
    image = torch.rand(1, 3, 100, 100) * 2 - 0.5
    check_values(image)
    image.flatten()[:300] = 7.0  # one in a hundred
    check_values(image)
    image.flatten()[:301] = 7.0
    with pytest.raises(ValueError, match="got values"):
        check_values(image)
    check_values(torch.rand(3, 0, 8))
    with pytest.raises(ValueError, match="got values from 0 to 1.01"):
        check_values(torch.linspace(0, 1.01, 9), slack=0.5 / 255, share=0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_samples_keep_alpha_depth_and_grey(tmp_path, mode):
    picture = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(RGB[..., 1]))
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.convert("RGB") if mode == "P" else picture).reshape(48, 64, -1)
    for samples in (to_samples(picture)[0], read_samples(tmp_path / "a.png")):
        assert samples.dtype == (np.uint16 if mode == "I;16" else np.uint8) and np.array_equal(samples, expected)
    again = to_samples(picture)[1](to_samples(picture)[0])
    assert again.mode == ("RGB" if mode == "P" else mode) and np.array_equal(np.asarray(again).reshape(expected.shape), expected)


def test_samples_are_upright_and_the_same_picture_as_the_image(tmp_path, log):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    samples = read_samples(tmp_path / "a.png")
    assert samples.shape == (64, 48, 3) and torch.equal(read_image(tmp_path / "a.png"), tensor(samples.copy()))
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ValueError, match="b.png: is not an image"):
        read_samples(tmp_path / "b.png")
