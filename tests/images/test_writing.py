"""Image files written: what each format holds, what it cannot, and what stays when a write fails."""
import logging

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from crlsr.images import WRITTEN, check_format, quantize, read_image, read_samples, write_image

RGB = data.coffee()[100:148, 200:264].copy()  # (48, 64, 3) uint8


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([".png", ".bmp", ".tif", ".tiff", ".webp", ".PNG"]), st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, height, width, suffix, double):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height * 41 + width)) * 1.4 - 0.2
    path = tmp_path_factory.mktemp("write") / f"a{suffix}"
    write_image(image.double() if double else image, path)
    assert torch.equal(read_image(path), quantize(image))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_writing_creates_folders_and_obeys_overwrite(tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    write_image(torch.zeros(3, 4, 4), path, overwrite=False)
    with pytest.raises(FileExistsError, match="exists already"):
        write_image(torch.ones(3, 4, 4), path, overwrite=False)
    assert read_image(path).max() == 0
    write_image(torch.ones(3, 4, 4), path)
    assert read_image(path).min() == 1


@pytest.mark.parametrize(
    "image, name, message",
    [
        (torch.rand(1, 3, 4, 4), "a.png", r"image: got shape \(1, 3, 4, 4\)"),
        (torch.rand(2, 4, 4), "a.png", "image: got shape"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "a.png", "torch.uint8.*divided by 255"),
        (torch.full((3, 4, 4), float("nan")), "a.png", "NaN"),
        (255 * torch.rand(3, 4, 4), "a.png", "got values from .*expected \\[0, 1\\]"),
        (np.zeros((3, 8, 8), np.uint8), "a.png", "channels last"),
        (torch.rand(3, 4, 4), "a.xyz", "path: got 'a.xyz'"),
        (torch.rand(3, 4, 4), "a", "path: got 'a'"),
    ],
)
def test_a_refused_image_leaves_the_old_file(tmp_path, image, name, message):
    path = tmp_path / name
    path.write_bytes(b"the old content")
    with pytest.raises(ValueError, match=message):
        write_image(image, path)
    assert path.read_bytes() == b"the old content" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("picture", [RGB, RGB[..., 0], RGB[..., :1], RGB / 255, Image.fromarray(RGB), Image.fromarray(RGB[..., 0])])
def test_arrays_and_pictures_are_written_as_they_are(tmp_path, picture):
    write_image(picture, tmp_path / "a.png")
    expected = Image.fromarray(RGB) if np.ndim(np.asarray(picture)) == 3 and np.asarray(picture).shape[2] == 3 else Image.fromarray(RGB[..., 0])
    stored = Image.open(tmp_path / "a.png")
    assert stored.mode == expected.mode and np.array_equal(np.asarray(stored), np.asarray(expected))


def test_a_failure_while_encoding_leaves_the_old_file(tmp_path, monkeypatch):
    def save(self, file, **options):
        open(file, "wb").write(b"half a file")
        raise OSError("disk full")

    path = tmp_path / "a.png"
    write_image(torch.zeros(3, 4, 4), path)
    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="disk full"):
        write_image(torch.ones(3, 4, 4), path)
    assert read_image(path).max() == 0 and len(list(tmp_path.iterdir())) == 1


def test_jpeg_is_written_without_subsampling(tmp_path):
    colour = torch.zeros(3, 16, 16)
    colour[0, :, ::2] = 1  # red stripes of one pixel, which subsampled chroma would mix
    write_image(colour, tmp_path / "a.jpg")
    assert (read_image(tmp_path / "a.jpg") - colour).abs().mean() < 0.05


NOISE = np.random.default_rng(0)


def made(channels: int, kind: type) -> np.ndarray:
    return NOISE.integers(0, np.iinfo(kind).max, (13, 7, channels), endpoint=True).astype(kind)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_and_depth_are_kept_where_the_format_holds_them(tmp_path, suffix, channels, kind):
    samples = made(channels, kind)
    write_image(samples[..., 0] if channels == 1 else samples, tmp_path / f"a{suffix}")
    back = read_samples(tmp_path / f"a{suffix}")
    if suffix == ".webp":  # colours of 8 bits only
        samples = np.round(samples / 257).astype(np.uint8) if kind is np.uint16 else samples
        samples = samples[..., [0] * 3 + [1] * (channels == 2)] if channels < 3 else samples
    if (suffix, channels, kind) == (".tif", 2, np.uint16):
        samples = samples[..., [0, 0, 0, 1]]  # grey as colours: Pillow opens no other TIFF of 16 bits with alpha
    assert back.dtype == samples.dtype and np.array_equal(back, samples)
    if suffix == ".tif":  # by another reader
        assert np.array_equal(tifffile.imread(tmp_path / "a.tif").reshape(samples.shape), samples)
    if kind is np.uint8 and suffix == ".png":
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(samples.shape), samples)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_what_a_format_cannot_hold_is_said_and_composited(tmp_path, caplog, channels, kind):
    caplog.set_level(logging.INFO, "crlsr.images")
    samples, peak = made(channels, kind), np.iinfo(kind).max
    write_image(samples, tmp_path / "a.bmp", shown=f"large{channels}.bmp")
    colours, alpha = samples[..., :-1].astype(float) / peak, samples[..., -1:].astype(float) / peak
    expected = (colours * alpha + 1 - alpha) * 255
    assert np.abs(read_samples(tmp_path / "a.bmp") - expected).max() <= (0.5 if kind is np.uint8 else 0.51)
    (line,) = [record.getMessage() for record in caplog.records if f"large{channels}.bmp" in record.getMessage()]
    assert "alpha composited over white" in line and ("16 bits reduced to 8" in line) == (kind is np.uint16)


@pytest.mark.parametrize("path, quality, message", [
    ("a.gif", None, "expected a name ending in .png"), ("a", None, "expected a name"), ("a.png", 90, "quality: got 90 for 'a.png'.*every value"),
    ("a.tif", 90, "quality"), ("a.jpg", 0, "1 to 100"), ("a.webp", 101, "1 to 100"), ("a.jpg", 9.5, "whole number"), ("a.jpg", True, "whole number"),
])
def test_formats_that_are_none(tmp_path, path, quality, message):
    for call in (lambda: check_format(path, quality), lambda: write_image(RGB, tmp_path / path, quality=quality)):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_every_suffix_that_is_written_is_written(tmp_path):
    for suffix in WRITTEN:
        write_image(RGB, tmp_path / f"a{suffix.upper()}")
        assert np.abs(read_samples(tmp_path / f"a{suffix.upper()}").astype(int) - RGB).mean() < 4


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality_trades_bytes_for_errors(tmp_path, suffix):
    sizes, errors = [], []
    for quality in (10, 60, 98):
        write_image(RGB, tmp_path / f"a{suffix}", quality=quality)
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        errors.append(np.abs(read_samples(tmp_path / f"a{suffix}").astype(int) - RGB).mean())
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True) and sizes[0] < sizes[2] and errors[0] > errors[2]


def test_a_side_too_long_for_a_format_is_one_line(tmp_path):
    for name, side in (("a.webp", 16384), ("a.jpg", 65501)):
        with pytest.raises(ValueError, match=f"{name}: {side} x 1 pixels, of at most .* take .png or .tif"):
            write_image(np.zeros((1, side), np.uint8), tmp_path / name)
