"""`make bundle`: finished runs become the models that come with the package, each with its measured numbers, a card and pictures.

    python -m tests.bundle RUN PLAIN [--data B100] [--out crlsr/models] [--overwrite]
    python -m tests.bundle --card crlsr/models/crlsr-x4

RUN is a run of CRL-SR, PLAIN one of plain L1 with the same network for the same time. The test set is read once for each pair;
the card is written from the numbers beside the model, so a change of its wording measures nothing again.
"""
from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

import crlsr
from crlsr.core import NUMERICS, atomic_path, check_targets, decimal, environment, file_digest, generator, plain, read_json, read_jsonl, share_path, write_json
from crlsr.data import source_files
from crlsr.degradation import Degradation
from crlsr.evaluation import evaluate
from crlsr.evaluation.comparison import bootstrap_interval, paired_differences
from crlsr.images import modcrop, read_image
from crlsr.inference import Bicubic, upscale
from crlsr.metrics import protocol
from crlsr.model import CRLSR, ModelConfig
from crlsr.training import TrainConfig, profile

MAX_MODEL, MAX_PICTURES = 3_000_000, 150 * 1024  # bytes of the model file, of all pictures together
PRESETS = {scale: ("multimodal", "spatial", "bicubic", f"iso:{sigma}", "aniso:4,1,45+noise:10") for scale, sigma in ((2, 1.2), (3, 1.8), (4, 2.4))}
OURS, PLAIN, BASE = "crlsr", "l1", "bicubic"
NETWORK = ("scale", "input", "num_feat", "num_block", "decoder_blocks", "decoder_base")
NO_LOSS = dict(weight_bc=0, weight_srnce=0, weight_rec=0)


class Run(NamedTuple):
    "A finished training."
    model: CRLSR
    train: TrainConfig
    minutes: float  # of training, interruptions left out


def read_run(folder: Path) -> Run:
    "The run of a folder. Raises FileNotFoundError or ValueError, one line, for one that is not finished."
    model = CRLSR.from_pretrained(folder)
    train = TrainConfig.from_dict(read_json(folder / "config.json")["train"])
    if model.meta.get("step") != train.steps:
        raise ValueError(f"run: {plain(folder)} has made {model.meta.get('step')} of {train.steps} steps, expected a finished run")
    return Run(model, train, list(read_jsonl(folder / "log.jsonl"))[-1]["seconds"] / 60)


def restorer_only(model: CRLSR) -> CRLSR:
    "The same model without all that only training needs."
    config = ModelConfig.from_flat(**{name: model.config.flat()[name] for name in NETWORK}, **NO_LOSS)
    alone = CRLSR(config)
    alone.restorer.load_state_dict(model.restorer.state_dict())
    alone.meta = dict(model.meta)
    with torch.no_grad():
        for height, width in ((1, 1), (5, 8), (24, 17)):
            lr = torch.rand(1, 3, height, width, generator=generator("restorer_only", height))
            if not torch.equal(alone.eval()(lr), model.eval()(lr)):
                raise ValueError("model: the restorer alone gives other images than the whole model")
    return alone


def taught(model: CRLSR) -> bool:
    "Whether any loss beside the pixel loss taught it, by a weight or by a share."
    c = model.config
    return c.decoupling.active or c.refinement.active or c.refinement.weight_rec > 0 or c.gradient.active or bool(c.shares)


def check_pair(ours: Run, control: Run) -> None:
    "Raises ValueError where two runs differ in more than the losses and the number of steps."
    if taught(control.model):
        raise ValueError("plain: was trained with losses of CRL-SR, expected weight_bc, weight_srnce, weight_rec and all shares of 0")
    if not taught(ours.model):
        raise ValueError("run: is plain L1 itself, expected one with the losses of CRL-SR")
    if ours.model.config.network != control.model.config.network:
        raise ValueError("plain: has another network than the run, expected the same")
    for name in ("seed", "data", "preset", "batch_size", "patch_size"):
        if getattr(ours.train, name) != getattr(control.train, name):
            raise ValueError(f"plain: {name} is {getattr(control.train, name)}, expected that of the run, {getattr(ours.train, name)}")


def recipe(run: Run) -> dict[str, Any]:
    "How to train it again: the profile and what is set beside it."
    flat, train = run.model.config.flat(), run.train.to_dict()
    model_default, train_default = profile("bundled")
    default = model_default.flat() | train_default.to_dict()
    changed = {name: value for name, value in (flat | train).items() if value != default[name] and name not in ("device", "threads")}
    return {"profile": "bundled", "settings": changed, "digest": [run.model.config.digest(), run.train.digest()],
            "steps": run.train.steps, "minutes": round(run.minutes, 1), "version": run.model.meta.get("version"), "seed": run.train.seed}


def measure(models: dict[str, Any], data: str, label: str, presets: tuple[str, ...]) -> list[dict[str, Any]]:
    "Every model under every degradation, in the form of `paired_differences`."
    found = []
    for name, model in models.items():
        rows = []
        for preset in presets:
            result = evaluate(model, data, preset, scale=model.scale, seed=0)
            images = [{"name": row["name"], "psnr": round(row["psnr"], 6), "ssim": round(row["ssim"], 6)} for row in result["images"]]
            rows.append({"data": label, "preset": result["preset"], "psnr": result["psnr"], "ssim": result["ssim"], "images": images})
            print(f"{name}, {result['preset']}: {result['psnr']:.2f} dB", flush=True)
        found.append({"name": name, "seed": 0, "metrics": rows})
    return found


# --- pictures -------------------------------------------------------------------------------------------------------------------

RULE = ("Chosen by a rule and not by eye: *well* are the three photographs with the largest gain of PSNR-Y over bicubic, *badly* those with the "
        "largest loss against bicubic or plain L1, whichever is larger; a photograph counts once, under the degradation where its figure is most extreme. "
        "The crop is the square of 96 pixels in which the two squared errors differ most.")


def chosen(runs: list[dict[str, Any]], count: int = 3) -> dict[str, list[dict[str, Any]]]:
    "Which photographs are shown, by RULE."
    figure = {(run["name"], row["preset"], image["name"]): image["psnr"] for run in runs for row in run["metrics"] for image in row["images"]}
    rows = []
    for (name, preset, image), psnr in figure.items():
        if name == OURS:
            gains = {other: psnr - figure[other, preset, image] for other in (BASE, PLAIN)}
            rows.append({"image": image, "preset": preset, "psnr": psnr, **gains})
    worst = lambda row: min((row[other], other) for other in (BASE, PLAIN))  # noqa: E731

    def first(ordered: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for row in ordered:
            found.setdefault(row["image"], row)
        return list(found.values())[:count]

    return {"well": first([{**row, "against": BASE} for row in sorted(rows, key=lambda row: -row[BASE])]),
            "badly": first([{**row, "against": worst(row)[1]} for row in sorted(rows, key=worst)])}


def strip(models: dict[str, Any], path: Path, index: int, row: dict[str, Any], side: int = 96, shown: int = 144) -> Image.Image:
    "One photograph: lr, bicubic, plain L1, CRL-SR, hr, the same crop of each."
    scale = models[OURS].scale
    hr = modcrop(read_image(path), scale)
    lr, _ = Degradation.parse(row["preset"], scale=scale)(hr[None].double(), generator(0, "evaluate", index))  # as `evaluate` degrades it
    images = {name: upscale(lr[0].float(), models[name]) for name in (BASE, PLAIN, OURS)}
    worse = ((images[OURS] - hr) ** 2 - (images[row["against"]] - hr) ** 2).mean(0, keepdim=True).abs()
    side = min(side, *hr.shape[-2:])
    sums = torch.nn.functional.avg_pool2d(worse, side, stride=scale)[0]
    top, left = (scale * int(i) for i in divmod(int(sums.argmax()), sums.shape[1]))
    small = lr[0].float().clamp(0, 1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    canvas = Image.new("RGB", (5 * shown + 4 * 4, shown), "white")
    for i, image in enumerate((small, *images.values(), hr)):
        crop = (image[:, top:top + side, left:left + side].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        canvas.paste(Image.fromarray(crop).resize((shown, shown), Image.Resampling.NEAREST), (i * (shown + 4), 0))
    return canvas


def encoded(pictures: list[Image.Image], limit: int = MAX_PICTURES) -> list[bytes]:
    "JPEG files of the best quality at which they weigh no more than the limit together."
    for quality in (92, 88, 84, 80, 74, 66, 56, 40, 20):
        files = []
        for picture in pictures:
            picture.save(buffer := io.BytesIO(), "JPEG", quality=quality, optimize=True)
            files.append(buffer.getvalue())
        if sum(map(len, files)) <= limit:
            return files
    raise ValueError(f"pictures: weigh more than {limit} bytes at the lowest quality")


# --- the card -------------------------------------------------------------------------------------------------------------------

def differences(numbers: dict[str, Any], preset: str, other: str, metric: str = "psnr") -> str:
    "Mean difference to another model with its interval over photographs."
    runs = {run["name"]: [run] for run in numbers["runs"]}
    return bootstrap_interval(paired_differences(runs[OURS], runs[other], numbers["data"], preset, metric)).text(2)


def card(numbers: dict[str, Any]) -> str:
    "The README of a model, all of it from the numbers beside it."
    means = {(run["name"], row["preset"]): row for run in numbers["runs"] for row in run["metrics"]}
    presets, ours, control, scale = numbers["presets"], numbers["recipe"], numbers["plain"], numbers["scale"]
    ahead = [preset for preset in presets if means[PLAIN, preset]["psnr"] > means[OURS, preset]["psnr"]]
    behind = [preset for preset in presets if means[BASE, preset]["psnr"] > means[OURS, preset]["psnr"]]
    settings = lambda each: " ".join(f"--set {shlex.quote(f'{name}={value}')}" for name, value in each["settings"].items())  # noqa: E731
    lines = [
        f"# crlsr-x{scale}", "",
        f"Enlarges photographs {scale} times. CRL-SR (arXiv 2107.00708) at the size of a CPU: {numbers['parameters']:,} parameters, the restorer only.", "",
        "```", f"crlsr upscale photo.jpg -o large.png --model crlsr-x{scale}", "```", "",
        "```python", "import crlsr", f'sr = crlsr.upscale("photo.jpg", "crlsr-x{scale}")', "```", "",
        "## What it was measured to do", "",
        f"{numbers['photographs']} photographs of {numbers['data']}, degraded by `crlsr evaluate --data {numbers['data']} --preset P --seed 0`, "
        f"PSNR and SSIM on luma, {numbers['protocol']['crop_border']} pixels left out on every side. *Plain L1* is the same network, trained without the losses of CRL-SR for about the same time. "
        "In brackets: 95 % bootstrap interval over photographs, for these weights only; it says nothing of another training.", "",
        f"| degradation | bicubic | plain L1 | crlsr-x{scale} | minus bicubic, dB | minus plain L1, dB |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for preset in presets:
        cells = [f"{means[name, preset]['psnr']:.2f} / {means[name, preset]['ssim']:.4f}" for name in (BASE, PLAIN, OURS)]
        lines.append(f"| `{preset}` | " + " | ".join([*cells, *(differences(numbers, preset, other) for other in (BASE, PLAIN))]) + " |")
    named = lambda which: ", ".join(f"`{preset}`" for preset in which)  # noqa: E731
    lines += ["", f"Plain L1 has the higher mean under {named(ahead)}." if ahead else "Plain L1 has the higher mean under none of these.",
              f"Bicubic has the higher mean under {named(behind)}." if behind else "Bicubic has the higher mean under none of these.", "",
              "## What it cannot do", "",
              f"- It knows the degradations of its recipe (`{numbers['trained_under']}`) and makes little of others: strong JPEG blocks, noise beyond them and motion over many pixels stay.",
              "- It restores what the mean of all fitting photographs has in common: texture that is gone comes back smooth, and letters that cannot be read stay unread.",
              f"- It was trained on {numbers['pool']}, photographs of nature and people, small and JPEG: drawings, screens and scans are strange to it.",
              "- It is no evidence. What it draws is likely, not what was there.", "",
              "## Pictures", "", numbers["rule"], "", "From left to right: lr, bicubic, plain L1, this model, hr.", ""]
    for kind in ("well", "badly"):
        lines += [f"### It does {kind}", ""]
        for row in numbers["pictures"][kind]:
            lines += [f"{plain(row['image'], markdown=True)} under `{row['preset']}`: {row['psnr']:.2f} dB, {decimal(row[BASE], 2, sign=True)} dB against bicubic, {decimal(row[PLAIN], 2, sign=True)} dB against plain L1",
                      "", f"![{kind}]({row['file']})", ""]
    lines += ["## How it was made", "", "| | this model | plain L1 |", "| --- | --- | --- |",
              *(f"| {key} | {ours[key]} | {control[key]} |" for key in ("steps", "minutes", "seed", "version")),
              *(f"| digest of the {what} | {ours['digest'][i]} | {control['digest'][i]} |" for i, what in enumerate(("model's settings", "training's settings"))), "",
              "Minutes are those of the training on one core.", "", "```",
              f"crlsr train --profile {ours['profile']} --run RUN {settings(ours)}".rstrip(),
              f"crlsr train --profile {control['profile']} --run PLAIN {settings(control)}".rstrip(), "```", "",
              f"Packaged by crlsr {numbers['environment']['crlsr']}, commit {numbers['environment']['commit']}, numerics {numbers['numerics']}, torch {numbers['environment']['torch']}. "
              f"SHA-256 of model.safetensors: `{numbers['sha256']}`.", "",
              "Every choice (recipe, weights of the losses, steps) was made on validation photographs; the test photographs above were read once, when this card was written.", "",
              "## Data and licence", "",
              f"Training photographs: {numbers['pool']} ({plain(numbers['pool_title'], markdown=True)}), whose licence reads \"{plain(numbers['pool_licence'], markdown=True)}\": {numbers['pool_page']}. "
              f"The photographs belong to their authors; the crops above come from {numbers['data']}.",
              "The weights are given under the licence of this package, Apache-2.0, as far as that is ours to give: they were learned from photographs that were handed out for research and education, "
              "and whether that binds weights is not settled. For anything else, train your own: the commands stand above.", ""]
    return "\n".join(lines)


def licence(data: str) -> dict[str, str]:
    "What the registry knows about a set of photographs."
    known = json.loads(share_path("data/registry.json").read_text(encoding="utf-8")).get("sets", {}).get(data.partition(":")[0], {})
    return {"pool": data, "pool_title": known.get("title", "a folder"), "pool_licence": known.get("licence", "unknown"), "pool_page": known.get("page", "no page")}


def bundle(run: Path, control: Path, out: Path, data: str = "B100", overwrite: bool = False) -> Path:
    "The folder of the packaged model. Raises, one line, before anything is measured, what cannot be packaged."
    ours, plain_run = read_run(run), read_run(control)
    check_pair(ours, plain_run)
    scale = ours.model.scale
    folder, photographs = out / f"crlsr-x{scale}", dict(sorted(source_files(data).items()))
    names = [f"{kind}-{i}.jpg" for kind in ("well", "badly") for i in (1, 2, 3)]
    check_targets([folder / name for name in ("model.safetensors", "config.json", "numbers.json", "README.md", *names)], overwrite=overwrite)
    models = {BASE: Bicubic(scale).eval(), PLAIN: restorer_only(plain_run.model), OURS: restorer_only(ours.model)}
    if (size := sum(value.numel() * value.element_size() for value in models[OURS].state_dict().values())) > MAX_MODEL:
        raise ValueError(f"model: its weights take {size} bytes, expected at most {MAX_MODEL}")
    label = data if not Path(data).is_dir() else Path(data).name  # no path of one machine
    runs = measure(models, data, label, PRESETS[scale])
    shown = chosen(runs)
    strips = {f"{kind}-{i}.jpg": strip(models, photographs[row["image"]], list(photographs).index(row["image"]), row)
              for kind, rows in shown.items() for i, row in enumerate(rows, 1)}
    for kind, rows in shown.items():
        for i, row in enumerate(rows, 1):
            row["file"] = f"{kind}-{i}.jpg"
    files = dict(zip(strips, encoded(list(strips.values()))))
    models[OURS].save_pretrained(folder, overwrite=overwrite)
    for name, content in files.items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
    numbers = {
        "model": f"crlsr-x{scale}", "scale": scale, "data": label, "photographs": len(photographs), "protocol": protocol(scale), "presets": [row["preset"] for row in runs[0]["metrics"]],
        "parameters": sum(value.numel() for value in models[OURS].parameters()), "trained_under": ours.train.preset, "recipe": recipe(ours), "plain": recipe(plain_run), **licence(ours.train.data),
        "numerics": NUMERICS, "environment": environment(), "sha256": file_digest(folder / "model.safetensors"), "rule": RULE, "pictures": shown, "runs": runs}
    write_json(folder / "numbers.json", numbers)
    write_card(folder)
    return folder


def write_card(folder: Path) -> None:
    "Writes README.md from numbers.json."
    with atomic_path(folder / "README.md") as path:
        path.write_text(card(read_json(folder / "numbers.json")), encoding="utf-8", newline="\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bundle", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN PLAIN", help="two finished runs")
    parser.add_argument("--card", type=Path, metavar="DIR", help="write only the README of a packaged model, from its numbers")
    parser.add_argument("--data", default="B100", help="test photographs, default B100")
    parser.add_argument("--out", type=Path, default=Path(crlsr.__file__).parent / "models")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that was packaged before")
    args = parser.parse_args(argv)
    if (args.card is None) == (len(args.runs) != 2):
        parser.error("expected two runs, RUN and PLAIN, or --card DIR")
    try:
        if args.card:
            write_card(args.card)
        else:
            print(bundle(*args.runs, args.out, args.data, args.overwrite))
    except (ValueError, OSError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
