"""""Write kaggle_kernels/*: notebooks and metadata from the texts below.

`--check` only compares, and exits with 1 where a folder differs.""."""
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
# Find the newest attached wheel, compare its sha256 with the manifest beside it, install it without network.
import hashlib, importlib.util, json, os, re, subprocess, sys
from pathlib import Path

inputs = Path(os.environ.get("HMS_KAGGLE_ROOT", "/kaggle"))/"input"
levels = ("*", "*/*", "datasets/*/*", "datasets/*/*/*")                # both mount forms
wheels = [w for level in levels for w in sorted(inputs.glob(f"{level}/hms_hbac-*.whl"))]
if not wheels: raise RuntimeError(f"no hms_hbac wheel under {inputs}: attach the dataset hms-hbac-wheel")
wheel = max(wheels, key=lambda w: [int(n) for n in re.findall(r"\\d+", w.name.split("-")[1])])
unused = ", ".join(w.name for w in wheels if w != wheel)
if unused: print(f"{len(wheels)} wheels are attached, the newest is used: {wheel.name}, not {unused}")
told = json.loads((wheel.parent/"manifest.json").read_text())["sha256"]
beside = [w for w in wheel.parent.glob("*.whl") if not w.name.startswith("hms_hbac-")]
others = [w for w in beside if importlib.util.find_spec(w.name.split("-")[0]) is None]
for w in [wheel, *others]:
    if hashlib.sha256(w.read_bytes()).hexdigest() == told.get(w.name): continue
    raise RuntimeError(f"{w.name} is refused: its sha256 is not the one in manifest.json; upload it again")
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
subprocess.run([*pip, "--no-index", "--no-deps", *map(str, [*others, wheel])], check=True)
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
WEIGHTS = None    # or "weights.yaml", packed with `hms-hbac kaggle weights RUNS --blend weights.yaml`

members = infer(GROUPS, "submission.csv", demo=DEMO, weights=WEIGHTS)'''

SUBMIT = '''\
from hms_hbac.kaggle.members import run_members, verdict

MEMBERS = {members}
LIMITS = {limits}
TOTAL = "8h30m"

members = run_members(MEMBERS, notebooks=wheel.parent, out="submission.csv", limits=LIMITS, total=TOTAL)'''

# The members of `submit-ensemble`: kernel -> the preset whose weights its GROUPS are; or None. Then those of
# the kernels that stand alone.
MEMBERS = {
    "infer-attention": "richard",
    "infer-multiwindow": "david",
    "infer-refined": None,
    "infer-balance": "balance",
}
ALONE = {"infer-panels": "cranjis-final"}
PUBLISHED = "The weights are those of the published blend."
INFERRED = {
    "infer-attention": (
        "Inference: the attention systems (Richard)",
        PUBLISHED + " One of its five groups, lb33 (.1), is unknown: `attention_b0_pseudo` stands in its "
        "place.",
    ),
    "infer-multiwindow": ("Inference: the multi-window systems, 1.2 to 1.0 (David)", PUBLISHED),
    "infer-refined": ("Inference: the refined EfficientNet (LB31)", "One recipe, as published."),
    "infer-balance": (
        "Inference: thirds of ResNet1D-GRU, the Keras inputs and three timm networks (balance)",
        PUBLISHED,
    ),
    "infer-panels": (
        "Inference: two-stage systems on Kaggle's spectrograms and on those of the EEG (Cranjis)",
        "The final blend of four, in equal parts, for its weights were not stated. Not a member of "
        "`submit-ensemble`.",
    ),
    "infer-winners": (
        "Inference: what the first places showed their networks, and one later system",
        "Thirteen recipes in equal parts: each team blended members of its own, so these weights are ours. "
        "Not a member of `submit-ensemble`.",
    ),
}
WINNERS = (
    "zoomed_mel_mixnet",
    "squeezeformer",
    "tiled_mels_tinyvit",
    "efficientnet1d",
    "left_right_encoder",
    "wavenet_picture_maxxvit",
    "four_pictures_vit",
    "scalogram_maxvit",
    "superlet_maxvit",
    "shared_conv_picture",
    "raw_picture_b5",
    "stft_x3d",
    "v2b3_picture",
)
WHOLE = {
    "infer-refined": {"refined_mosaic_b0": 1.0},
    "infer-winners": dict.fromkeys(WINNERS, 1 / len(WINNERS)),
}
LIMITS = {"infer-attention": "3h", "infer-multiwindow": "2h", "infer-refined": "1h", "infer-balance": "2h"}
TITLES = {
    "train-attention": "Training: the attention systems (Richard)",
    "train-multiwindow": "Training: the multi-window systems (David)",
    "train-refined": "Training: the refined EfficientNet (LB31)",
    "train-balance": "Training: ResNet1D-GRU, the Keras inputs and three timm networks (balance)",
    "train-panels": "Training: two-stage systems on Kaggle's spectrograms and on those of the EEG (Cranjis)",
    "train-winners": "Training: what the first places showed their networks, and one later system",
}


def groups_of(name):
    "{recipe: weight} of an inference kernel."
    from hms_hbac.inference.presets import preset
    if name in WHOLE: return WHOLE[name]
    return {r: round(w, 6) for r, w in preset((MEMBERS | ALONE)[name]).items()}


def demo_of(name):
    "What stands in for the members at demo scale, where the demo trains other recipes; or None."
    return groups_of(name) | {"panels_b0": 1.0} if name == "infer-panels" else None


def label_sources(name):
    "Recipes whose runs give a recipe its labels, by name."
    from hms_hbac.models.recipe import load_recipe
    return [Path(r).name for stage in load_recipe(name).stages for r in stage.labels.runs]


def trained(name):
    """Recipes that the training kernel beside an inference kernel trains.

    Its members, each after those that label it."""
    out = []

    def add(recipe):
        for source in label_sources(recipe): add(source)
        if recipe not in out: out.append(recipe)

    for recipe in groups_of(name.replace("train-", "infer-")): add(recipe)
    return out


def written(d):
    "A dict, list or None as Python: one line, or one line an entry where that is too wide."
    if d is None:
        return "None"
    def entry(k):
        value = d[k] if isinstance(d[k], str) else round(d[k], 6)
        return f"{json.dumps(k)}: {json.dumps(value)}"
    entries = list(map(entry if isinstance(d, dict) else json.dumps, d))
    left, right = "{}" if isinstance(d, dict) else "[]"
    line = left + ", ".join(entries) + right
    return line if len(line) <= 95 else left + "\n    " + ",\n    ".join(entries) + ",\n" + right


def notebook(title, about, *cells):
    nb = new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nb.cells = [
        new_markdown_cell(f"# {title}\n\n{about}"),
        *(new_code_cell(c) if isinstance(c, str) else new_markdown_cell(c[0]) for c in cells),
    ]
    for n, c in enumerate(nb.cells):
        c["id"] = hashlib.sha256(f"{n}{c.cell_type}{c.source}".encode()).hexdigest()[:8]
    return nbformat.writes(nb) + "\n"


def kernel(name, title, about, *cells, datasets=("hms-hbac-wheel",), internet=False):
    slug = f"hms-{name}"
    meta = {
        "id": f"{OWNER}/{slug}",
        "title": slug.replace("-", " "),
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": internet,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [f"{OWNER}/{d}" for d in datasets],
        "competition_sources": [COMPETITION],
        "kernel_sources": [],
        "model_sources": [],
    }
    return {
        f"{name}/kernel-metadata.json": json.dumps(meta, indent=2) + "\n",
        f"{name}/{name}.ipynb": notebook(title, about, INSTALL, *cells),
    }


def dataset(name, slug, title, subtitle):
    meta = {
        "id": f"{OWNER}/{slug}",
        "title": title,
        "subtitle": subtitle,
        "licenses": [{"name": "apache-2.0"}],
    }
    return {f"{name}/dataset-metadata.json": json.dumps(meta, indent=2) + "\n"}


def files():
    out = dataset(
        "wheel", "hms-hbac-wheel", "hms hbac wheel", "The package hms_hbac for kernels without internet"
    ) | dataset(
        "weights", "hms-hbac-weights", "hms hbac weights", "Trained systems of hms_hbac for inference"
    )
    out[".gitignore"] = (
        "# what `hms-hbac kaggle wheel` and `weights` put beside the metadata\n"
        "/wheel/*\n/weights/*\n/.*.part\n!*/dataset-metadata.json\n"
    )
    for name, title in TITLES.items():
        about = (
            "Trains on all GPUs until the budget is over. `hms-hbac kaggle push --resume` attaches this "
            "kernel's last output, from which the next run goes on. Internet is on: the pretrained backbones "
            "come from the Hugging Face hub."
        )
        out |= kernel(
            name, title, about, TRAIN.format(recipes=written(trained(name))), "states", internet=True
        )
    for name, (title, weights) in INFERRED.items():
        member = "" if name not in MEMBERS else ", and a member of `submit-ensemble`"
        cell = INFER.format(groups=written(groups_of(name)), demo=written(demo_of(name)))
        out |= kernel(name, title, f"A valid submission by itself{member}. {weights}", cell, "members",
                      datasets=("hms-hbac-wheel", "hms-hbac-weights"))
    cell = SUBMIT.format(members=written(dict.fromkeys(MEMBERS, .25)), limits=written(LIMITS))
    out |= kernel(
        "submit-ensemble",
        "Submission: four notebooks, one blend",
        "The mean of four notebooks, as published. Each member runs in a process of its own with its own "
        "time limit; its notebook "
        "lies beside the wheel. A valid `submission.csv` exists from the first minute on.",
        cell,
        'print(verdict(members), members.to_string(index=False), sep="\\n\\n")',
        datasets=("hms-hbac-wheel", "hms-hbac-weights"),
    )
    return out


def strangers():
    "Folders of kernels that the texts above do not make."
    known = {name.partition("/")[0] for name in files()}
    return sorted(
        p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in known and not p.name.startswith(".")
    )


def main(check=False):
    stale = [
        name
        for name, text in files().items()
        if not (ROOT/name).is_file() or (ROOT/name).read_text(encoding="utf-8") != text
    ]
    if check:
        stale += strangers()
        print(
            "\n".join(f"kaggle_kernels/{n} differs from tools/build_kernels.py; run it" for n in stale)
            or "kaggle_kernels: in sync"
        )
        return int(bool(stale))
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(files()[name], encoding="utf-8")
    print(f"{len(stale)} files written in kaggle_kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
