"""Rows and table of bench/learn.py: how much of the gap each recipe closes, and from what that was made."""
import shlex

import pandas as pd

from hms_hbac.core import read_json, write_json
from hms_hbac.evaluation.runs import gap_closed
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.training.results import recipe_hash

COLUMNS = ("recipe", "KL", "closed", "95 %", "by seed", "samples", "CPU minutes", "date", "reduced")


def scored(name, oofs, truth, **more):
    "A row of the table, of a list of out-of-fold tables (one a seed)."
    each = [float(gap_closed(oof, truth)["closed"]) for oof in oofs]
    found = gap_closed(pd.concat(oofs, ignore_index=True), truth)
    found = {k: v if isinstance(v, int) else float(v) for k, v in found.items()}
    return {"recipe": name, **found, "by_seed": each, "events": found["events"] // len(oofs), **more}


def hash_of(name, args): return recipe_hash(load_recipe(name, args.scale, args.set))


def say(row):
    took = f"{row['cpu_minutes']:6.1f} CPU min" if "cpu_minutes" in row else ""
    print(f"{row['recipe']:32} KL {row['kl']:.3f}  closed {row['closed']:6.1%} "
          f"[{row['low']:6.1%}, {row['high']:6.1%}] {took}", flush=True)


def settings(args):
    "What must be alike for two rows to stand in one table."
    return {k: getattr(args, k) for k in ("scale", "preset", "patients", "data", "set")}


def earlier(args):
    "The rows of earlier calls with these settings, by name."
    path = args.out.with_suffix(".json")
    told = read_json(path) if path.is_file() else {"settings": None}
    return {r["recipe"]: r for r in told["rows"]} if told["settings"] == settings(args) else {}


def better(new, old):
    "The row to keep: the new one, unless the old one is of the same recipe and has more seeds."
    same = old and old.get("hash") == new.get("hash")
    return old if same and len(old["by_seed"]) > len(new["by_seed"]) else new


def cells(row):
    "A row as the texts of `COLUMNS`."
    return {"recipe": row["recipe"], "KL": f"{row['kl']:.3f}", "closed": f"{row['closed']:.1%}",
            "95 %": f"{row['low']:.1%} to {row['high']:.1%}",
            "by seed": ", ".join(f"{c:.2f}" for c in row["by_seed"]) if "hash" in row else "",
            "samples": f"{row['samples']:,}" if "samples" in row else "",
            "CPU minutes": f"{row['cpu_minutes']:.1f}" if "cpu_minutes" in row else "",
            "date": row.get("date", ""), "reduced": row.get("reduced", "")}


def listed(rows, columns):
    "A markdown table of rows, best first."
    made = [cells(r) for r in sorted(rows, key=lambda r: -r["closed"])]
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
            *("| " + " | ".join(m[c] for c in columns) + " |" for m in made)]


def remarks(rows, args):
    "Lines about rows that are missing, weak, or older than their recipe."
    own = [r for r in rows if "hash" in r]
    known = set(list_recipes())
    groups = {"Not run yet": sorted(known - {r["recipe"] for r in own}),
              "One seed only": [r["recipe"] for r in own if len(r["by_seed"]) < 2],
              "Closes less than 40 %": [r["recipe"] for r in own if r["closed"] < .4],
              "Not beyond the mean vote by its interval": [r["recipe"] for r in own if r["low"] <= 0],
              "Changed since its row was made": [r["recipe"] for r in own if r["recipe"] in known
                                                 and r["hash"] != hash_of(r["recipe"], args)]}
    return [f"{text} ({len(names)}): {', '.join(names)}.\n" for text, names in groups.items() if names]


def origins(rows, args):
    "Lines that tell machines, how busy they were, and commands."
    own, out = [r for r in rows if "hash" in r], []
    for machine in dict.fromkeys(r["machine"] for r in own):
        loads = [r["load"] for r in own if r["machine"] == machine]
        out.append(f"Machine: {machine}; load when a training ended: {min(loads):g} to {max(loads):g}.\n")
    commands = dict.fromkeys([*(r["command"] for r in own), shlex.join(args.argv)])
    return out + [f"Command: `python bench/learn.py {c}`\n" for c in commands]


def write(rows, blends, args):
    "The table as markdown, what it was made from, and the same as JSON."
    first = next(iter(rows.values()))
    data = args.data or (f"{args.patients} patients" if args.patients else f"`{args.preset}`")
    text = [f"# What each recipe learns at scale {args.scale}", "",
            f"Fold 0 of a simulated competition ({data}): {first['events']} events with ten votes or more",
            f"of {first['patients']} patients. Best constant answer {first['mean_vote']:.3f}, floor",
            f"{first['floor']:.3f}. `closed`: share of that gap, with its 95 % interval over patients;",
            "`samples`: windows that a training has seen, as often as it saw them; `CPU minutes`: of a seed,",
            "on processors that other work shared, so no speed; `date`: of the last training.", "",
            *origins(rows.values(), args), *listed(rows.values(), COLUMNS), "", *remarks(rows.values(), args)]
    if blends: text += ["Published ensembles of these rows:", "", *listed(blends, COLUMNS[:5]), ""]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    write_json(args.out.with_suffix(".json"), {"settings": settings(args), "rows": list(rows.values()),
                                               "blends": blends})
