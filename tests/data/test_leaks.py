"""The leak check: copies, crops and turned views of known images are found, other photographs are not."""
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crlsr.app.cli import main
from crlsr.core import generator
from crlsr.data import check_folder, embedded_images, leaks, load_images, source_files
from crlsr.data.leaks import LeakFinder, from_text, image_print, known_prints, to_text
from crlsr.data.patches import augment
from crlsr.images import read_image, resize, write_image

PHOTOGRAPHS = embedded_images("all")


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255


def test_stored_prints_are_current():
    known = known_prints()
    assert {name.split("/")[0] for name in known} == {"Set5", "Set14", "B100", "BSDS500", "embedded"} and len(known) == 141
    for name in ("chelsea", "coffee"):
        now, stored = image_print(PHOTOGRAPHS[name]), known[f"embedded/{name}"]
        assert torch.allclose(now.thumbnail, stored.thumbnail, atol=0.01)
        assert torch.equal(now.positions, stored.positions)
    for print_ in known.values():
        assert print_.positions.min() >= 12 and abs(float(print_.thumbnail.norm()) - 1) < 1e-5
        assert to_text(from_text(to_text(print_))) == to_text(print_)


@given(seed=st.integers(0, 10_000), name=st.sampled_from(["chelsea", "coffee"]))
def test_large_crops_are_found_in_any_place_view_and_encoding(seed, name):
    rng = generator("crop", seed)
    draw = lambda end: int(torch.randint(end, (), generator=rng))  # noqa: E731
    image, side = PHOTOGRAPHS[name], 272
    top, left = draw(image.shape[1] - side + 1), draw(image.shape[2] - side + 1)
    view = jpeg(augment(image[:, top : top + side, left : left + side], draw(8)), 60 + draw(36))
    assert f"embedded/{name}" in LeakFinder(known_prints()).find(view)


@settings(max_examples=10)
@given(factor=st.floats(0.4, 1.6), quality=st.integers(30, 95), k=st.integers(0, 7))
def test_whole_copies_are_found_at_any_size(factor, quality, k):
    copy = jpeg(resize(augment(PHOTOGRAPHS["coffee"], k), scale=factor), quality)
    assert LeakFinder(known_prints()).find(copy) == {"embedded/coffee": "the whole picture"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 7), (49, 49), (50, 50), (51, 400)])
@pytest.mark.parametrize("value", [0.0, 0.5, None])
def test_tiny_and_flat_images_show_nothing(shape, value):
    image = torch.rand(3, *shape, generator=generator("tiny")) if value is None else torch.full((3, *shape), value)
    assert LeakFinder(known_prints()).find(image) == {}
    assert from_text(to_text(image_print(image))).positions.shape[1] == 2


def test_other_photographs_and_large_sheets_show_nothing():
    finder = LeakFinder(known_prints())
    train = embedded_images("train")
    assert not any(finder.find(image) for image in train.values())
    sheet = torch.cat([torch.cat([augment(image[:, :424, :424], k) for image in train.values()], 2) for k in (0, 6)], 1)
    assert finder.find(sheet) == {}
    with_cat = torch.cat([sheet[:, :300], torch.cat([PHOTOGRAPHS["chelsea"], sheet[:, 400:700, 451:]], 2)], 1)
    assert set(finder.find(with_cat)) == {"embedded/chelsea"}


def test_check_folder_names_every_trouble(tmp_path):
    rocket = PHOTOGRAPHS["rocket"]
    write_image(rocket, tmp_path / "a.png")
    write_image(rocket, tmp_path / "b.bmp")  # other bytes, the same pixels
    write_image(rocket[:, :95], tmp_path / "low.png")
    write_image(PHOTOGRAPHS["ihc"], tmp_path / "302003.png")
    write_image(PHOTOGRAPHS["chelsea"].flip(-1), tmp_path / "cat.jpg")
    (tmp_path / "text.png").write_text("hello")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    report = check_folder(tmp_path)
    assert not report.ok and report.images == 5 and report.sides == (95, 640)
    assert sorted(Path(line.split(":")[0]).name for line in report.unreadable) == ["text.png", "torn.png"]
    assert report.small == ["low.png has 640x95 pixels, a patch needs 96"]
    assert report.duplicates == ["b.bmp has the pixels of a.png"]
    assert [line.split()[0] for line in report.leaks] == ["302003.png", "cat.jpg"]
    assert len(report.lines()) == 2 + 6 and all("\n" not in line for line in report.lines())
    assert check_folder(tmp_path, min_side=95).small == []


def test_check_folder_tries_every_image_whatever_becomes_of_one(tmp_path, monkeypatch, caplog, capsys):
    for name in "abcdef":
        write_image(PHOTOGRAPHS["rocket"][:, : 100 + ord(name)], tmp_path / f"{name}.png")
    raised = {"a": PermissionError(13, "Permission denied"), "c": MemoryError(), "d": OSError(40, "Too many levels of symbolic links"),
              "e": RuntimeError("two\nlines")}
    real = leaks.read_image

    def read(path, **options):
        if path.stem in raised:
            raise raised[path.stem]
        return real(path, **options)

    monkeypatch.setattr(leaks, "read_image", read)
    (tmp_path / "g.png").write_bytes(b"\x1b[2Jno image")
    report = check_folder(tmp_path)
    assert report.images == 2 and [line.split(":")[0].split("/")[-1] for line in report.unreadable] == ["a", "c", "d", "e", "g.png"]
    assert not report.ok and all(line.isprintable() for line in report.lines())
    assert main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert all(said.count(line) == 1 for line in report.unreadable) and not caplog.records  # each finding once


def test_check_folder_passes_clean_images_and_refuses_missing_ones(tmp_path):
    report = check_folder("embedded:train")
    assert report.ok and len(report.lines()) == 2
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path / "missing")
    (tmp_path / "only.png").write_text("no image")
    assert not check_folder(tmp_path).ok


# with the real images: CRLSR_TEST_DATA names the folder that holds Set5, Set14, B100 and BSDS500


@pytest.fixture
def real_data(monkeypatch):
    root = os.environ.get("CRLSR_TEST_DATA")
    if not root:
        pytest.skip("CRLSR_TEST_DATA is not set")
    monkeypatch.setenv("CRLSR_DATA", root)
    return Path(root)


@pytest.mark.slow
def test_registered_splits_are_clean_and_tests_are_leaks(real_data):
    report = check_folder("BSDS500:train")
    assert report.ok and report.images == 379, report.lines()
    for name, count in (("Set5", 5), ("Set14", 14), ("B100", 100), ("BSDS500:validation", 20)):
        report = check_folder(name)
        assert report.images == count and len({line.split()[0] for line in report.leaks}) == count


@pytest.mark.slow
def test_detection_rates_of_the_notebook(real_data):
    known = known_prints()
    names = [name for name in known if name.split("/")[0] in ("Set5", "Set14", "B100")]
    finder = LeakFinder({name: known[name] for name in names})
    others = [read_image(path) for source in ("BSDS500:train", "BSDS500:validation") for path in source_files(source).values()]
    assert sum(bool(finder.find(image)) for image in others) == 0
    wide = [image[:, :320, :480] for image in others if image.shape[-1] == 481]
    sheets = [torch.cat([torch.cat(wide[k + 4 * r : k + 4 * r + 4], 2) for r in range(4)], 1) for k in range(0, len(wide) - 15, 16)]
    assert len(sheets) == 16 and not any(finder.find(sheet) for sheet in sheets)
    images = [image for source in ("Set5", "Set14", "B100") for image in load_images(source).values()]
    rng = generator("measure")

    def crop(image, side):
        tall, wide = (min(side, n) for n in image.shape[-2:])
        top, left = (int(torch.randint(n - m + 1, (), generator=rng)) for n, m in zip(image.shape[-2:], (tall, wide)))
        return image[:, top : top + tall, left : left + wide]

    treatments = {  # name -> (treatment, least share found, largest share found)
        "jpeg": (lambda x: jpeg(x, 30), 1, 1),
        "half": (lambda x: resize(x, scale=1 / 2).clamp(0, 1), 1, 1),
        "larger": (lambda x: resize(x, scale=3 / 2).clamp(0, 1), 1, 1),
        "pale": (lambda x: 0.6 * x + 0.2, 1, 1),
        "turned": (lambda x: jpeg(x.transpose(-1, -2), 75), 1, 1),
        "trimmed": (lambda x: x[:, x.shape[1] // 20 :, x.shape[2] // 20 :], 1, 1),
        "crop320": (lambda x: jpeg(crop(x, 320), 75), 0.99, 1),
        "crop256": (lambda x: jpeg(crop(x, 256).flip(-1), 75), 0.97, 1),
        "crop192": (lambda x: jpeg(crop(x, 192), 75), 0.75, 0.97),
        "crop128": (lambda x: jpeg(crop(x, 128), 75), 0, 0.15),
        "crop256half": (lambda x: resize(crop(x, 256), scale=1 / 2).clamp(0, 1), 0, 0.15),
    }
    for treatment, (change, least, most) in treatments.items():
        found = [name in finder.find(change(image).contiguous()) for name, image in zip(names, images)]
        share = sum(found) / len(found)
        print(f"{treatment}: {sum(found)} of {len(found)}")
        assert least <= share <= most, (treatment, share)
