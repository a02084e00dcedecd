"""Draw the README's picture from a finished demo: a held-out event, its votes and the ensemble's prediction.

    python tools/readme_picture.py demo        # after `make demo`; writes nbs/images/demo.png
"""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np

from hms_hbac.core import CLASSES
from hms_hbac.data.competition import Competition, events
from hms_hbac.evaluation.plots import event_card
from hms_hbac.training.oof import SURE_VOTES, read_oof

demo = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
comp = Competition(demo / "competition")
runs = sorted((demo / "runs").iterdir())
members = [read_oof(run).set_index("event_id") for run in runs]
common = sorted(set.intersection(*(set(m.index) for m in members)))
tables = [m.loc[common, list(CLASSES)] for m in members]
prob = np.mean(tables, axis=0)
table = events(comp.train).set_index("event_id", drop=False).loc[common]
chosen = np.flatnonzero((table.consensus == "lpd").to_numpy() & (table.n_votes >= SURE_VOTES).to_numpy())[0]
figure = event_card(comp, table.iloc[chosen], prob[chosen])
figure.set_dpi(75)
out = Path(__file__).resolve().parent.parent / "nbs/images/demo.png"
figure.savefig(out, dpi=75)
print(out)
