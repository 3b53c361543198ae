"""cli: exit codes, one line for every error, files that are never harmed."""
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import png
import pytest
import torch
from PIL import Image

from crlsr.app.cli import main
from crlsr.data import embedded_images
from crlsr.images import read_image, read_samples, write_image
from tests.notebooks import ROOT

TINY = [word for key, value in dict(steps=3, batch_size=1, patch_size=12, num_feat=4, num_block=3, warmup_steps=1).items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "Two photographs, their lr, a trained run, and files that are broken in every way."
    base = tmp_path_factory.mktemp("cli")
    for name in ("chelsea", "coffee"):
        write_image(embedded_images("heldout")[name][:, 60:188, 100:260], base / "hr" / f"{name}.png")
    assert main(["train", "--profile", "smoke", "--data", str(base / "hr"), "--run", str(base / "run"), *TINY]) == 0
    assert main(["degrade", str(base / "hr"), "-o", str(base / "lr"), "--preset", "iso:2.4+noise:5"]) == 0
    (base / "text.png").write_text("no image")
    half = lambda source, target: (base / target).write_bytes((base / source).read_bytes()[:2000])  # noqa: E731
    half("hr/coffee.png", "half.png")
    half("run/model.safetensors", "half.safetensors")
    (base / "cut").mkdir()
    half("run/checkpoint.pt", "cut/checkpoint.pt")
    write_image(torch.rand(3, 9, 30), base / "strip.png")
    write_image(torch.rand(3, 1, 1), base / "dot.png")
    return base


@pytest.fixture
def crlsr(base, tmp_path, capsys, monkeypatch):
    "Runs a command line in which @ is the folder of the photographs and % one of this test; gives (code, stdout, stderr)."
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([word.replace("@", str(base)).replace("%", str(tmp_path)) for word in line.split()])
        return code, *capsys.readouterr()

    return run


# --- errors ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("line, code, words", [
    ("upscale @/none.png -o %/x --model bicubic", 1, "none.png: no such file or folder"),
    ("upscale @/text.png -o %/x --model bicubic", 1, "text.png: is not an image"),
    ("upscale @/half.png -o %/x --model bicubic", 1, "half.png"),
    ("upscale @/lr -o %/x --model bicubc", 1, "bicubic"),
    ("upscale @/lr -o %/x --model @/half.safetensors", 1, "half.safetensors"),
    ("upscale @/lr -o %/x --model @/cut", 1, "checkpoint"),
    ("upscale @/lr -o %/x --model @/run --scale 3", 1, "expected scale 3"),
    ("upscale @/lr -o %/x --scale 3", 1, "crlsr-x3"),
    ("upscale @/lr -o %/x.png --model bicubic", 1, "expected a folder"),
    ("degrade @/hr -o %/x --preset gausian8", 1, "did you mean 'gaussian8'"),
    ("degrade @/hr -o %/x --preset iso:2+nose:3", 1, "did you mean 'noise'"),
    ("degrade @/strip.png -o %/x --preset iso:2", 1, "strip.png"),
    ("degrade @/hr -o @/hr --preset iso:2 --overwrite", 1, "is an input"),
    ("degrade @/hr -o @/lr --preset iso:2", 1, "or --overwrite"),
    ("degrade @/hr -o %/x --preset iso:2+noise:500", 1, "expected 0 <= a <= b <= 255"),
    ("upscale @/lr -o @/text.png/ --model bicubic", 1, "text.png is a file, expected a folder"),
    ("degrade @/dot.png -o %/x --replay @/lr/params.json", 1, "params.json: image 'dot': has no partner of its name"),
    ("degrade @/hr -o %/x --replay @/text.png", 1, "text.png"),
    ("train --profile smok --run %/x", 1, "did you mean 'smoke'"),
    ("train --profile smoke --run %/x --set learning_rte=1e-3", 1, "did you mean 'learning_rate'"),
    ("train --profile smoke --run %/x --set steps", 1, "key=value"),
    ("train --profile smoke --run %/x --set steps=many", 1, "steps"),
    ("train --profile smoke --run %/x --data @/none", 1, "none"),
    ("train --profile smoke --run @/run", 1, "other settings"),
    ("train --profile smoke --run @/cut", 1, "checkpoint.pt"),
    ("evaluate --model bicubic --data @/none --preset iso:2", 1, "none"),
    ("evaluate --model @/run --data @/hr --preset iso:2 --scale 2", 1, "expected scale 2"),
    ("evaluate --model bicubic --data @/hr --preset iso:2 --json @/hr/coffee.png", 1, "is an input"),
    ("evaluate --model bicubic --data @/hr --preset iso:2 --json @/hr/coffee.png --overwrite", 1, "is an input"),
    ("evaluate --model bicubic --data @/hr --lr @/lr --json @/lr/params.json --overwrite", 1, "is an input"),
    ("evaluate --model @/run --data @/hr --preset iso:2 --json @/run/config.json --overwrite", 1, "is an input"),
    ("evaluate --model bicubic --data @/hr --preset iso:2 --json @/text.png", 1, "exists already"),
    ("evaluate --model bicubic --data @/hr --preset iso:2 --json @/text.png/r.json", 1, "is a file, expected a folder"),
    ("evaluate --model bicubic --data @/hr --preset iso:2 --json @/hr", 1, "is a folder"),
    ("reproduce smok", 1, "did you mean 'smoke'"),
    ("reproduce smoke --profile smok --dry-run", 1, "did you mean 'smoke'"),
    ("report @/hr", 1, "no results.json"),
    ("data check @/none", 1, "none"),
    ("", 2, "COMMAND"),
    ("upscal @/lr -o %/x", 2, "invalid choice: 'upscal'"),
    ("degrade @/hr -o %/x", 2, "--preset --replay"),
    ("degrade @/hr -o %/x --replay @/lr/params.json --seed 1", 2, "--seed"),
    ("degrade @/hr -o %/x --preset iso --seed -1", 2, "expected at least 0"),
    ("degrade @/hr -o %/x --preset iso --seed many", 2, "--seed: invalid number value: 'many'"),
    ("evaluate --model bicubic --data @/hr --lr @/lr --seed 1", 2, "--seed"),
    ("upscale @/lr -o %/x --model bicubic --scale 5", 2, "invalid choice: 5"),
    ("reproduce smoke --jobs 0", 2, "expected at least 1"),
])
def test_an_error_is_one_line_and_leaves_nothing(crlsr, tmp_path, line, code, words):
    found, _, err = crlsr(line)
    assert found == code
    assert err.startswith("crlsr: ") and err.count("\n") == 1 and words in err, err
    assert not list(tmp_path.rglob("[!.]*.*")) and not list(tmp_path.rglob(".crlsr-*"))


def test_an_unforeseen_error_is_named_and_debug_shows_it(crlsr, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("sigma")

    monkeypatch.setattr("crlsr.app.batch.collect_images", broken)
    code, _, err = crlsr("degrade @/hr -o %/x --preset iso")
    assert code == 1 and err == "crlsr: KeyError: 'sigma' (--debug shows where)\n"
    with pytest.raises(KeyError):
        crlsr("degrade @/hr -o %/x --preset iso --debug")


def test_an_interruption_is_one_line_and_130(crlsr, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("crlsr.app.batch.collect_images", interrupted)
    assert crlsr("degrade @/hr -o %/x --preset iso") == (130, "", "crlsr: interrupted\n")


def test_ctrl_c_in_a_real_process(base, tmp_path):
    command = [sys.executable, "-u", "-c", "import sys; from crlsr.app.cli import main; sys.exit(main())"]
    run = [*command, "train", "--profile", "smoke", "--data", str(base / "hr"), "--run", str(tmp_path / "run"), "--set", "steps=100000"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()  # it says first what it is about to do
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1] == "crlsr: interrupted" and "Traceback" not in err


def test_a_closed_pipe_is_quiet():
    code = "import sys; from crlsr.app.cli import main; sys.exit(main(['data', 'list']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_messages_go_to_stderr_and_the_logger_is_left_as_it_was(crlsr):
    import logging

    logger = logging.getLogger("crlsr")
    before = logger.level, list(logger.handlers)
    assert crlsr("data list")[0] == 0 and crlsr("upscale @/none.png -o %/x")[0] == 1
    assert (logger.level, logger.handlers) == before


# --- start ------------------------------------------------------------------------------------------------------------------------

def test_help_is_instant_and_loads_nothing_heavy():
    code = "import sys; from crlsr.app.cli import main; main(['--help']); assert not {'torch', 'numpy', 'PIL', 'skimage'} & set(sys.modules)"
    seconds = []  # CPU time; where many share caches and cores it doubles, so the best of three counts
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    commands = re.findall(r"(?m)^    (\w+)  +\S", done.stdout)
    assert commands == ["upscale", "degrade", "data", "estimate", "train", "evaluate", "export", "reproduce", "report", "doctor"], "in the order in which one needs them, text beside the name"
    assert min(seconds) <= 0.5


@pytest.mark.parametrize("command", ["upscale", "degrade", "train", "evaluate", "export", "reproduce", "report", "data", "data check", "estimate", "doctor"])
def test_every_command_explains_itself(crlsr, command):
    code, out, err = crlsr(f"{command} --help")
    assert code == 0 and out.startswith(f"usage: crlsr {command}") and err == ""


def test_version(crlsr):
    import crlsr as package

    assert crlsr("--version") == (0, f"crlsr {package.__version__}\n", "")


# --- degrade ------------------------------------------------------------------------------------------------------------------------

def contents(folder: Path) -> dict[str, bytes]:
    "What was made in a folder, without its record and its lock."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.mark.parametrize("preset", ["bicubic", "iso", "gaussian8", "aniso+noise:0..25", "iso:1.2+noise:10"])
def test_one_seed_gives_one_set_of_bytes_and_so_does_replay(crlsr, tmp_path, preset):
    assert crlsr(f"degrade @/hr -o %/a --preset {preset} --seed 3")[0] == 0
    assert crlsr(f"degrade @/hr -o %/b --preset {preset} --seed 3")[0] == 0
    assert crlsr("degrade @/hr -o %/c --replay %/a/params.json")[0] == 0
    a = contents(tmp_path / "a")
    assert a == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert len(a) == (17 if preset == "gaussian8" else 3)
    if "noise" in preset:
        assert crlsr(f"degrade @/hr -o %/d --preset {preset} --seed 4")[0] == 0
        assert not {name for name, data in contents(tmp_path / "d").items() if a[name] == data}


def test_the_bytes_do_not_depend_on_the_process_or_its_threads(base, tmp_path):
    code = "import sys; from crlsr.app.cli import main; sys.exit(main())"
    line = ["degrade", str(base / "hr"), "--preset", "aniso+noise:0..25", "-o"]
    subprocess.run([sys.executable, "-c", code, *line, str(tmp_path / "there")], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1" if torch.get_num_threads() > 1 else "2"})
    assert main([*line, str(tmp_path / "here")]) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_photograph_that_changed_is_not_replayed(crlsr, base, tmp_path):
    write_image(read_image(base / "hr" / "coffee.png").flip(-1), tmp_path / "other" / "coffee.png")
    code, _, err = crlsr("degrade %/other -o %/x --replay @/lr/params.json")
    assert code == 1 and "sha256 differs" in err


def test_overwriting_has_to_be_asked_for(crlsr, tmp_path):
    assert crlsr("degrade @/hr -o %/a --preset iso --seed 1")[0] == 0
    first = contents(tmp_path / "a")
    code, _, err = crlsr("degrade @/hr -o %/a --preset iso --seed 2")
    assert code == 1 and "--overwrite" in err and contents(tmp_path / "a") == first
    assert crlsr("degrade @/hr -o %/a --preset iso --seed 2 --overwrite")[0] == 0
    assert contents(tmp_path / "a") != first


def test_a_linked_input_is_not_overwritten_either(crlsr, base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "coffee.png").symlink_to(base / "hr" / "coffee.png")
    before = (base / "hr" / "coffee.png").read_bytes()
    code, _, err = crlsr("degrade @/hr/coffee.png -o %/out --preset iso --overwrite")
    assert code == 1 and "is an input" in err and (base / "hr" / "coffee.png").read_bytes() == before


# --- upscale ------------------------------------------------------------------------------------------------------------------------

def test_upscale_file_folder_tiles_and_a_single_pixel(crlsr, base, tmp_path):
    code, out, err = crlsr("upscale @/lr -o %/large --model @/run")
    assert (code, err) == (0, "") and out.splitlines() == [str(tmp_path / "large" / f"{name}.png") for name in ("chelsea", "coffee")]
    assert read_image(tmp_path / "large" / "coffee.png").shape == (3, 128, 160)
    assert crlsr("upscale @/lr/coffee.png -o %/tiles.png --model @/run --tile 9")[0] == 0
    assert crlsr("upscale @/lr/coffee.png -o %/auto.png --model @/run --tile auto")[0] == 0
    difference = read_image(tmp_path / "tiles.png") - read_image(tmp_path / "large" / "coffee.png")
    assert difference.abs().max() <= 1 / 255 + 1e-6  # a value near a half may round the other way
    for scale in (2, 3, 4):
        assert crlsr(f"upscale @/dot.png -o %/dot{scale}.png --model bicubic --scale {scale}")[0] == 0
        assert read_image(tmp_path / f"dot{scale}.png").shape == (3, scale, scale)


def make_grey(path):
    Image.new("L", (24, 16), 128).save(path)


def make_transparent(path):
    Image.new("RGBA", (24, 16), (255, 0, 0, 100)).save(path)


def make_deep(path):
    with open(path, "wb") as file:
        png.Writer(24, 16, bitdepth=16, greyscale=False).write(file, np.full((16, 72), 40000, np.uint16).tolist())


def make_cmyk(path):
    Image.new("CMYK", (24, 16), (0, 128, 255, 10)).save(path)


@pytest.mark.parametrize("make, name, to, word", [
    (make_grey, "a.png", "png", None), (make_transparent, "a.png", "png", None), (make_deep, "a.png", "png", None), (make_deep, "a.png", "tif", None), (make_cmyk, "a.jpg", "png", "CMYK"),
    (make_transparent, "a.png", "jpg", "large.jpg: alpha composited over white, JPG holds none"), (make_deep, "a.png", "webp", "large.webp: 16 bits reduced to 8"),
])
def test_what_is_kept_and_what_is_told_in_one_line(crlsr, tmp_path, make, name, to, word):
    make(tmp_path / name)
    kept = {make_grey: ((32, 48, 1), np.uint8), make_transparent: ((32, 48, 4), np.uint8), make_deep: ((32, 48, 3), np.uint16), make_cmyk: ((32, 48, 3), np.uint8)}[make]
    for out in (f"large.{to}", "folder"):
        code, _, err = crlsr(f"upscale %/{name} -o %/{out} --model bicubic --scale 2 {'--format ' + to if out == 'folder' else ''}")
        samples = read_samples(tmp_path / out if out != "folder" else tmp_path / out / f"a.{to}")
        assert code == 0 and samples.shape[:2] == (32, 48)
        if to in ("png", "tif"):
            assert (samples.shape, samples.dtype) == kept
        if word is None:
            assert err == ""
        elif "CMYK" in word:
            assert out == "folder" or (err.count("\n") == 1 and name in err and word in err)
        else:
            assert err.count("\n") == 1 and (word if out != "folder" else f"folder/a.{to}") in err, err


def test_globs_formats_suffixes_and_quality(crlsr, base, tmp_path):
    code, out, err = crlsr("upscale @/lr/c*.png -o %/large --model bicubic --format jpg --suffix _x4 --quality 60")
    assert (code, err) == (0, "") and out.splitlines() == [str(tmp_path / "large" / f"{name}_x4.jpg") for name in ("chelsea", "coffee")]
    small = (tmp_path / "large" / "coffee_x4.jpg").stat().st_size
    assert crlsr("upscale @/lr -o %/larger --model bicubic --format jpg --suffix _x4")[0] == 0
    assert small < (tmp_path / "larger" / "coffee_x4.jpg").stat().st_size
    assert crlsr("upscale @/lr/coffee.png -o %/exact.png --model @/run --overlap exact --tile 6")[0] == 0
    assert crlsr("upscale @/lr/coffee.png -o %/whole.png --model @/run --memory 2G")[0] == 0
    assert (read_image(tmp_path / "exact.png") - read_image(tmp_path / "whole.png")).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("options, words", [
    ("-o %/x --format gif", "format, suffix: got 'gif'"), ("-o %/x.png --format jpg", "is a whole name"), ("-o %/x.png --suffix _x4", "is a whole name"), ("-o %/x --suffix a/b", "no slash"),
    ("-o %/x --quality 80", "quality: got 80 for"), ("-o %/x --format jpg --quality 101", "1 to 100"), ("-o %/x --memory lots", "memory: got 'lots'"),
])
def test_options_that_contradict_are_told_before_the_work(crlsr, tmp_path, options, words):
    code, out, err = crlsr(f"upscale @/lr/coffee.png --model bicubic {options}")
    assert (code, out) == (1, "") and words in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_pattern_without_a_match_and_a_name_with_signs(crlsr, base, tmp_path):
    code, _, err = crlsr("upscale @/lr/*.gif -o %/x --model bicubic")
    assert code == 1 and "no file has such a name" in err
    (tmp_path / "a[1]*.png").write_bytes((base / "dot.png").read_bytes())
    assert crlsr("upscale %/a[1]*.png -o %/x --model bicubic")[0] == 0 and (tmp_path / "x" / "a[1]*.png").exists()


def test_a_corrupt_file_in_a_folder_is_named_and_the_others_done(crlsr, base, tmp_path):
    shutil.copytree(base / "lr", tmp_path / "photos")
    (tmp_path / "photos" / "bad.png").write_bytes((base / "lr" / "coffee.png").read_bytes()[:300])
    code, out, err = crlsr("upscale %/photos -o %/large --model bicubic --format tiff")
    assert code == 1 and len(out.splitlines()) == 2 and "1 of 3 images failed" in err and "bad.png" in err
    assert sorted(path.name for path in (tmp_path / "large").glob("[!.]*")) == ["chelsea.tiff", "coffee.tiff"]


def test_threads_follow_the_cores_given(tmp_path):
    from crlsr.app.commands import cores_given

    (tmp_path / "max").write_text("max 100000\n")
    assert cores_given(tmp_path / "max") == cores_given(tmp_path / "absent") >= 1
    for text, cores in (("100000 100000", 1), ("1000 100000", 1), ("99000000 100000", cores_given(tmp_path / "max"))):
        (tmp_path / "cpu.max").write_text(text)
        assert cores_given(tmp_path / "cpu.max") == cores
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nfrom crlsr.app.commands import cores_given\nprint(cores_given())"
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


# --- train, evaluate ------------------------------------------------------------------------------------------------------------------

def test_a_finished_training_is_found(crlsr, base):
    stamp = (base / "run" / "model.safetensors").stat().st_mtime_ns
    code, out, _ = crlsr(f"train --profile smoke --data @/hr --run @/run {' '.join(TINY)}")
    assert code == 0 and out.splitlines()[0].startswith("training: 3 steps") and (base / "run" / "model.safetensors").stat().st_mtime_ns == stamp


def test_evaluate_gives_rows_a_mean_and_the_promised_json(crlsr, tmp_path):
    code, out, _ = crlsr("evaluate --model @/run --data @/hr --preset iso:2.4 --json %/r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and {"model", "preset", "scale", "protocol", "psnr", "ssim", "images", "environment"} <= result.keys()
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["chelsea", "coffee", "mean"]
    assert float(rows[3][1]) == pytest.approx(result["psnr"], abs=0.005)
    assert result["psnr"] == pytest.approx(sum(row["psnr"] for row in result["images"]) / 2)
    before = (tmp_path / "r.json").read_bytes()
    code, out, err = crlsr("evaluate --model bicubic --data @/hr --preset bicubic --json %/r.json")
    assert (code, out) == (1, "") and "r.json: exists already; choose another output, or --overwrite" in err and (tmp_path / "r.json").read_bytes() == before
    assert crlsr("evaluate --model bicubic --data @/hr --preset bicubic --json %/r.json --overwrite")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["model"] == "bicubic"
    (tmp_path / "link.json").symlink_to("nowhere.json")
    assert "exists already" in crlsr("evaluate --model bicubic --data @/hr --preset bicubic --json %/link.json")[2]


def test_a_result_in_a_new_folder(crlsr, tmp_path):
    assert crlsr("evaluate --model bicubic --data @/hr --preset bicubic --json %/new/folder/r.json")[0] == 0
    assert json.loads((tmp_path / "new" / "folder" / "r.json").read_text())["images"]


PRINTED = """
import sys
from crlsr.app.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8:strict", "utf-8:surrogateescape"])
def test_a_terminal_that_cannot_print_a_name_ends_no_batch(base, tmp_path, monkeypatch, encoding):
    (tmp_path / "in").mkdir()
    for name in ("\u0424.png".encode(), b"a\xe9.png", b"two\nlines.png", b"z.png"):
        (Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name))).write_bytes((base / "dot.png").read_bytes())
    line = ["upscale", "in", "-o", "out", "--model", "bicubic"]
    if encoding == "ascii":  # the streams as Python makes them; otherwise as it would make them
        done = subprocess.run([sys.executable, "-c", PRINTED, *line], cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.chdir(tmp_path)
        said = [io.TextIOWrapper(io.BytesIO(), *encoding.split(":")) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", said[0]), monkeypatch.setattr(sys, "stderr", said[1])
        code = main(line)
        out, err = (stream.flush() or stream.buffer.getvalue() for stream in said)
        monkeypatch.undo()
    lines = out.decode("utf-8").splitlines()
    assert (code, err) == (0, b"") and lines[0] == r"out/a\udce9.png" and lines[1:3] == [r"out/two\nlines.png", "out/z.png"]
    assert lines[3] in (r"out/\u0424.png", "out/\u0424.png") and len(list((tmp_path / "out").glob("[!.]*"))) == len(lines) == 4


@pytest.mark.parametrize("name, code, word", [("SIGTERM", 143, "terminated"), pytest.param("SIGHUP", 129, "hung up", marks=pytest.mark.slow), pytest.param("SIGINT", 130, "interrupted", marks=pytest.mark.slow)])
def test_a_batch_that_is_asked_to_stop_leaves_nothing_half_and_goes_on(crlsr, base, tmp_path, name, code, word):
    command = [sys.executable, "-u", "-c", PRINTED, "degrade", str(base / "hr"), "-o", "lr", "--preset", "gaussian8"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) in ((code, f"crlsr: {word}\n"), (0, "")) and not list(tmp_path.rglob("*.partial*"))
    code, out, _ = crlsr("degrade @/hr -o %/lr --preset gaussian8")
    assert code == 0 and len(out.splitlines()) == 17


def test_nohup_is_respected(base, tmp_path):
    code = "import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport crlsr.app.batch\nfrom crlsr.app.cli import main\n" \
           "crlsr.app.batch.collect_images = lambda given: os.kill(os.getpid(), signal.SIGHUP) or {}\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "degrade", "x", "-o", str(tmp_path / "x"), "--preset", "iso"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["crlsr", "crlsr.app.cli"])
def test_python_m(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("crlsr 0.")

def test_degrade_writes_what_evaluate_makes_in_memory(crlsr, tmp_path):
    assert crlsr("evaluate --model bicubic --data @/hr --preset iso:2.4+noise:5 --json %/a.json")[0] == 0
    assert crlsr("evaluate --model bicubic --data @/hr --lr @/lr --json %/b.json")[0] == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert (a["psnr"], a["ssim"]) == (b["psnr"], b["ssim"])


# --- the rest ---------------------------------------------------------------------------------------------------------------------------

def test_a_dry_run_lists_runs_and_writes_nothing(crlsr, tmp_path):
    code, out, err = crlsr("reproduce smoke --dry-run")
    first, *runs = out.splitlines()
    assert (code, err) == (0, "") and "minutes" in first and [line.split()[3:4] for line in runs] == [["l1"], ["crlsr"]]
    assert all(len(line.split()[0]) == 12 for line in runs) and not list(tmp_path.iterdir())


def test_a_part_of_a_study_by_command(crlsr, tmp_path):
    code, out, err = crlsr("reproduce smoke --seeds 2 --only crlsr --set steps=7 --set preset=iso --dry-run")
    assert (code, err) == (0, "") and [line.split()[3:6] for line in out.splitlines()[1:]] == [[name, "seed", seed] for seed in "01" for name in ("l1", "crlsr")]
    assert crlsr("reproduce smoke --dry-run --only crls")[::2] == (1, "crlsr: variant: study 'smoke' has no 'crls'; did you mean 'crlsr'?\n")
    assert crlsr("reproduce smoke --dry-run --set stesp=7")[2].endswith("unknown parameter 'stesp'; did you mean 'steps'?\n")
    assert crlsr("reproduce smoke --set steps")[:1] == (1,)
    assert "left to the profile" in crlsr("reproduce smoke --dry-run --set guidance_end=None")[2]


def test_a_plan_as_json(crlsr, tmp_path, monkeypatch):
    code, out, err = crlsr("reproduce smoke --dry-run --json --out runs")
    plan = json.loads(out)
    assert (code, err) == (0, "") and [(run["variant"], run["seed"], run["finished"], run["absent"]) for run in plan["runs"]] == [("l1", 0, False, []), ("crlsr", 0, False, [])]
    assert plan["minutes_left"] == sum(run["minutes"] for run in plan["runs"]) > 0 and all(run["notebook"] == f"{run['dir']}/train.ipynb" for run in plan["runs"])
    monkeypatch.setenv("CRLSR_DATA", str(tmp_path))
    code, out, err = crlsr("reproduce control --dry-run --json --seed 11 --out runs")
    assert (code, err) == (0, "") and [(run["seed"], run["absent"]) for run in json.loads(out)["runs"]] == [(11, ["BSDS500:train", "BSDS500:validation", "B100"])] * 4


@pytest.mark.parametrize("line, code, message", [
    ("reproduce", 2, "expected a STUDY, or --list alone"), ("reproduce smoke --list", 2, "--list alone"), ("reproduce smoke --json", 2, "--json: expected --list or --dry-run"),
    ("reproduce smoke --dry-run --seeds 2 --seed 2", 1, "no such run with seed 2; its seeds: 0, 1"), ("reproduce smoke --dry-run --seed 7", 1, "no such run with seed 7; its seeds: 0"), ("reproduce %/mine.toml --dry-run", 1, "study: no file"),
    ("reproduce smoke --dry-run --seed 0 --only crls", 1, "did you mean 'crlsr'"),
])
def test_a_study_that_cannot_be_meant(crlsr, line, code, message):
    found, out, err = crlsr(line)
    assert (found, out) == (code, "") and message in err and err.count("\n") == 1


def test_a_cell_of_a_study_is_planned_alone(crlsr):
    code, out, err = crlsr("reproduce smoke --dry-run --seed 0 --only crlsr")
    assert (code, err) == (0, "") and [line.split()[3] for line in out.splitlines()[1:]] == ["crlsr"]


def test_a_study_of_one_s_own(crlsr, tmp_path):
    (tmp_path / "mine.toml").write_text('question = "?"\nprediction = "0"\ndecision = "?"\nprofile = "smoke"\n[variants.l1]\nweight_bc = 0.0\n')
    code, out, err = crlsr("reproduce %/mine.toml --dry-run --seeds 2 --out runs")
    assert (code, err) == (0, "") and out.startswith("mine: trains and evaluates 2 of 2 models") and [line.split()[3:6] for line in out.splitlines()[1:]] == [["l1", "seed", seed] for seed in "01"]


def test_data_list_and_check(crlsr, base, tmp_path):
    code, out, _ = crlsr("data list")
    assert code == 0 and {"embedded", "Set5"} <= {line.split()[0] for line in out.splitlines()}
    write_image(embedded_images("train")["rocket"], tmp_path / "good" / "rocket.png")
    assert crlsr("data check %/good")[0] == 0
    write_image(embedded_images("train")["rocket"], tmp_path / "good" / "twice.png")
    code, out, _ = crlsr("data check %/good")
    assert code == 1 and "twice.png" in out
    (tmp_path / "good" / "notes.png").write_text("no image")
    code, out, err = crlsr("data check %/good")
    assert code == 1 and out.count("notes.png") == 1 and err == "", "found once, told once"


def test_doctor_tells_what_is_missing(crlsr, monkeypatch):
    monkeypatch.delenv("CRLSR_DATA", raising=False)
    code, out, _ = crlsr("doctor")
    topics = [line[:16].strip() for line in out.splitlines()]
    assert code == 0 and topics[:4] == ["python", "torch", "cores", "memory"] and {"extra notebooks", "data folder", "writing here"} <= set(topics)
    monkeypatch.setenv("CRLSR_DATA", "/no/such/folder")
    code, out, _ = crlsr("doctor")
    assert code == 1 and [line for line in out.splitlines() if "MISSING" in line and "/no/such/folder" in line]


def test_doctor_says_how_to_install_what_is_missing(crlsr, monkeypatch):
    monkeypatch.delenv("CRLSR_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "nbconvert", None)
    code, out, _ = crlsr("doctor")
    (line,) = [line for line in out.splitlines() if line.startswith("extra notebooks")]
    assert code == 0 and line == f'extra notebooks optional nbconvert is not installed (nbconvert is missing): pip install -e "{ROOT}[notebooks]"'
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = crlsr("doctor")
    assert code == 1 and out.splitlines()[-1].startswith("torch           MISSING  cannot be imported") and out.endswith(": pip install torch\n")


def test_every_image_that_cannot_be_scored_is_named(crlsr):
    code, out, err = crlsr("evaluate --model bicubic --data @/hr --lr @/hr")
    last = err.splitlines()[-1]
    assert code == 1 and out == "" and "Traceback" not in err
    assert last.startswith("crlsr: 2 of 2 images failed") and "chelsea" in last and "coffee" in last


@pytest.mark.parametrize("line", ["upscale @/hr/coffee.png -o %/out --model bicubic --scale 2", "degrade @/hr/coffee.png -o %/out --preset bicubic",
                                  "evaluate --model bicubic --scale 4 --data @/hr --preset bicubic", "data prepare @/hr -o %/out --size 48 --step 24", "data check @/hr"])
def test_the_limit_on_pixels_is_the_commands(crlsr, base, tmp_path, line):
    "Refused with the flag that the error names, read with a higher limit; afterwards the usual limit holds again."
    code, out, err = crlsr(f"{line} --max-pixels 20479")  # 128 x 160 is one more
    assert code == 1 and "--max-pixels" in out + err and not list(tmp_path.glob("out/*.png"))
    code, out, err = crlsr(f"{line} --max-pixels 20480")
    assert "--max-pixels" not in out + err
    assert read_image(base / "hr/coffee.png").shape == (3, 128, 160)
