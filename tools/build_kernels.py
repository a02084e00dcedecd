"""Write kaggle_kernels/*: notebooks and metadata from the texts below. `--check` only compares, and exits with 1 where a folder differs."""
import hashlib
import json
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent / "kaggle_kernels"
OWNER = "INSERT_OWNER"
COMPETITION = "hms-harmful-brain-activity-classification"

# The first code cell of every kernel: the wheel cannot find itself.
INSTALL = '''\
# Find the newest attached wheel (both mount forms), compare its sha256 with the manifest beside it, install it without network.
import hashlib, importlib.util, json, os, re, subprocess, sys
from pathlib import Path

inputs = Path(os.environ.get("HMS_KAGGLE_ROOT", "/kaggle"))/"input"
wheels = [w for level in ("*", "*/*", "datasets/*/*", "datasets/*/*/*") for w in sorted(inputs.glob(f"{level}/hms_hbac-*.whl"))]
if not wheels: raise RuntimeError(f"no hms_hbac wheel under {inputs}: attach the dataset hms-hbac-wheel")
wheel = max(wheels, key=lambda w: [int(n) for n in re.findall(r"\\d+", w.name.split("-")[1])])
if len(wheels) > 1: print(f"{len(wheels)} wheels are attached, the newest is used: {wheel.name}, not {', '.join(w.name for w in wheels if w != wheel)}")
others = [w for w in wheel.parent.glob("*.whl") if not w.name.startswith("hms_hbac-") and importlib.util.find_spec(w.name.split("-")[0]) is None]
told = json.loads((wheel.parent/"manifest.json").read_text())["sha256"]
for w in [wheel, *others]:
    if hashlib.sha256(w.read_bytes()).hexdigest() != told.get(w.name): raise RuntimeError(f"{w.name} is refused: its sha256 is not the one in manifest.json; upload the dataset again")
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", *map(str, [*others, wheel])], check=True)
importlib.invalidate_caches()
import hms_hbac
print(f"hms_hbac {hms_hbac.__version__} from {wheel.name}, sha256 {told[wheel.name]}")
for w in others: print(f"{w.name}, sha256 {told[w.name]}")'''

TRAIN = '''\
from hms_hbac.kaggle.kernels import train_kernel

RECIPES = {recipes}
FOLDS = [0, 1, 2, 3, 4]
BUDGET = "11h"

states = train_kernel(RECIPES, FOLDS, BUDGET)'''

INFER = '''\
from hms_hbac.kaggle.kernels import infer

GROUPS = {groups}
DEMO = {demo}

members = infer(GROUPS, "submission.csv", demo=DEMO)'''

SUBMIT = '''\
from hms_hbac.kaggle.members import run_members, verdict

MEMBERS = {members}
LIMITS = {limits}
TOTAL = "8h30m"

members = run_members(MEMBERS, notebooks=wheel.parent, out="submission.csv", limits=LIMITS, total=TOTAL)'''

TRAINED = {
    "train-attention": ("Training: Richard's attention systems", ["attention_b0", "attention_v2s", "attention_convnext", "attention_v2s_distilled", "attention_b0_pseudo"]),
    "train-multiwindow": ("Training: David's multi-window systems", ["multiwindow_b0", "multiwindow_mobilenetv3"]),
    "train-panels": ("Training: Cranjis's two-stage systems, Kaggle's spectrograms and those of the EEG", ["panels_twostage_b0", "eeg_twostage_b0"]),
    "train-public-blend": ("Training: the members of Wu-n0's blend", ["resnet1d_gru", "refined_mosaic_b0", "instance_b0", "dataset_b1", "own_spectrogram_b1"]),
}
INFERRED = {
    "infer-attention": ("Inference: Richard's five groups", {"attention_b0": .5, "attention_v2s_distilled": .2, "attention_convnext": .1, "attention_b0_pseudo": .1, "attention_v2s": .1}, None),
    "infer-multiwindow": ("Inference: David's two backbones, 1.2 to 1.0", {"multiwindow_b0": 1.2, "multiwindow_mobilenetv3": 1.0}, None),
    "infer-panels": ("Inference: Cranjis's two-stage pair, Kaggle's spectrograms and those of the EEG", {"panels_twostage_b0": .5, "eeg_twostage_b0": .5},
                     {"panels_twostage_b0": .5, "eeg_twostage_b0": .5, "panels_b0": 1.0}),
    "infer-public-blend": ("Inference: Wu-n0's blend, .15 ResNet1D-GRU, .50 refined EfficientNet, .35 in three EfficientNets",
                           {"resnet1d_gru": .15, "refined_mosaic_b0": .50, "instance_b0": .35 / 3, "dataset_b1": .35 / 3, "own_spectrogram_b1": .35 / 3}, None),
}
MEMBERS = dict.fromkeys(INFERRED, .25)
LIMITS = {"infer-attention": "3h", "infer-multiwindow": "2h", "infer-panels": "1h", "infer-public-blend": "2h"}


def written(d):
    "A dict, list or None as Python on one line."
    if not isinstance(d, dict):
        return "None" if d is None else json.dumps(d)
    return "{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v if isinstance(v, str) else round(v, 6))}" for k, v in d.items()) + "}"


def notebook(title, about, *cells):
    nb = new_notebook(metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}})
    nb.cells = [new_markdown_cell(f"# {title}\n\n{about}"), *(new_code_cell(c) if isinstance(c, str) else new_markdown_cell(c[0]) for c in cells)]
    for n, c in enumerate(nb.cells):
        c["id"] = hashlib.sha256(f"{n}{c.cell_type}{c.source}".encode()).hexdigest()[:8]
    return nbformat.writes(nb) + "\n"


def kernel(name, title, about, *cells, datasets=("hms-hbac-wheel",), internet=False):
    slug = f"hms-{name}"
    meta = {"id": f"{OWNER}/{slug}", "title": slug.replace("-", " "), "code_file": f"{name}.ipynb", "language": "python", "kernel_type": "notebook",
            "is_private": True, "enable_gpu": True, "enable_tpu": False, "enable_internet": internet, "machine_shape": "NvidiaTeslaT4",
            "dataset_sources": [f"{OWNER}/{d}" for d in datasets], "competition_sources": [COMPETITION], "kernel_sources": [], "model_sources": []}
    return {f"{name}/kernel-metadata.json": json.dumps(meta, indent=2) + "\n", f"{name}/{name}.ipynb": notebook(title, about, INSTALL, *cells)}


def dataset(name, slug, title, subtitle):
    meta = {"id": f"{OWNER}/{slug}", "title": title, "subtitle": subtitle, "licenses": [{"name": "apache-2.0"}]}
    return {f"{name}/dataset-metadata.json": json.dumps(meta, indent=2) + "\n"}


def files():
    out = dataset("wheel", "hms-hbac-wheel", "hms hbac wheel", "The package hms_hbac for kernels without internet") | \
        dataset("weights", "hms-hbac-weights", "hms hbac weights", "Trained systems of hms_hbac for inference")
    out[".gitignore"] = "# what `hms-hbac kaggle wheel` and `weights` put beside the metadata\n/wheel/*\n/weights/*\n!*/dataset-metadata.json\n"
    for name, (title, recipes) in TRAINED.items():
        out |= kernel(name, title, "Trains on all GPUs until the budget is over. `hms-hbac kaggle push --resume` attaches this kernel's last output, from which the next run goes on. "
                      "Internet is on: the pretrained backbones come from the Hugging Face hub.", TRAIN.format(recipes=written(recipes)), "states", internet=True)
    for name, (title, groups, demo) in INFERRED.items():
        out |= kernel(name, title, "A valid submission by itself, and a member of `submit-ensemble`. The weights are those of the published blend.",
                      INFER.format(groups=written(groups), demo=written(demo)), "members", datasets=("hms-hbac-wheel", "hms-hbac-weights"))
    out |= kernel("submit-ensemble", "Submission: four notebooks, one blend",
                  "Each member runs in a process of its own with its own time limit; its notebook lies beside the wheel. A valid `submission.csv` exists from the first minute on.",
                  SUBMIT.format(members=written(MEMBERS), limits=written(LIMITS)), "print(verdict(members), members.to_string(index=False), sep=\"\\n\\n\")", datasets=("hms-hbac-wheel", "hms-hbac-weights"))
    return out


def main(check=False):
    stale = [name for name, text in files().items() if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != text]
    if check:
        print("\n".join(f"kaggle_kernels/{n} differs from tools/build_kernels.py; run it" for n in stale) or "kaggle_kernels: in sync")
        return int(bool(stale))
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(files()[name], encoding="utf-8")
    print(f"{len(stale)} files written in kaggle_kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
