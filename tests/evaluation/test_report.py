"""The report: its content, its faults, and how a browser shows it."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from browser import chromium
from bs4 import BeautifulSoup

from hms_hbac.core import CLASSES, VOTES, DataError, write_json
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.evaluation.report import report
from hms_hbac.training.oof import oof_kl

NASTY = "<img src=x onerror=alert(1)> & \"co\""


def write_run(runs, name, comp, table, fog, seed, folds=(0, 1), status="finished", origin="made up"):
    "Run folders as training leaves them; the predictions are the votes seen through a fog."
    rng = np.random.default_rng(seed)
    noisy = (table[list(VOTES)].to_numpy(float) / table[["n_votes"]].to_numpy()
             + .08) * np.exp(fog * rng.standard_normal((len(table), 6)))
    oof = table[["event_id", "eeg_id", "patient_id", "fold", "n_votes",
                 *VOTES]].assign(**dict(zip(CLASSES, (noisy / noisy.sum(1, keepdims=True)).T, strict=True)))
    for k in folds:
        folder = runs / name / f"fold{k}"
        folder.mkdir(parents=True)
        oof[oof.fold == k].to_parquet(folder / "oof.parquet")
        (folder / "recipe.yaml").write_text(json.dumps({"name": name, "origin": origin}))
        pd.DataFrame({"stage": ["all", "all"], "update": [5, 10], "loss": [1.5, 1.], "lr": [1e-3, 1e-4],
                      "kl_selected": [1.2, .9]}).to_csv(folder / "history.csv", index=False)
        write_json(folder / "manifest.json",
                   {"status": status, "recipe": name, "fold": k, "data": comp.fingerprint,
                    "data_path": str(comp.path), "seed": 42,
                   "wall_seconds": 100. * seed, "samples_per_s": 40., "notes": [NASTY],
                    "versions": {"python": "3.11", "torch": "2.15.0"}})


@pytest.fixture(scope="module")
def runs(comp_dir, tmp_path_factory):
    comp = Competition(comp_dir)
    runs = tmp_path_factory.mktemp("report") / "runs"
    table = add_folds(events(comp.train), n=2)
    write_run(runs, "thin_fog", comp, table, .5, 1, origin=NASTY)
    write_run(runs, "thick_fog", comp, table, .9, 2)
    write_run(runs, "middle_fog", comp, table, .7, 9)
    write_run(runs, "begun", comp, table, .5, 3, folds=(0,), status="paused")
    return runs


@pytest.fixture(scope="module")
def file(runs, comp_dir):
    return report(runs, runs.parent / "report.html", data=comp_dir, n_cards=2)


@pytest.fixture(scope="module")
def soup(file):
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


COLUMNS = ["recipe", "KL, 10 votes or more", "KL, all", "difference to the best", "events", "folds",
           "wall time", "samples/s", "origin"]


def column(soup, name):
    return [row.find_all(["th",
                          "td"])[COLUMNS.index(name)]["data-v"]
            for row in soup.select("#leaderboard tbody tr")]


def test_leaderboard_says_what_the_runs_say(soup, runs):
    assert column(soup, "recipe") == ["thin_fog", "middle_fog", "thick_fog", "begun"]
    oof = pd.concat([pd.read_parquet(f) for f in (runs / "thick_fog").glob("fold*/oof.parquet")])
    kl = oof_kl(oof)
    assert float(column(soup, "KL, all")[2]) == pytest.approx(kl.mean())
    sure = kl[(oof.n_votes >= 10).to_numpy()].mean()
    assert float(column(soup, "KL, 10 votes or more")[2]) == pytest.approx(sure)
    cell = soup.select("#leaderboard tbody tr")[2].find_all(["th", "td"])[COLUMNS.index("KL, all")].get_text()
    mean, low, high = (float(x) for x in cell.replace("(", "").replace(")", "").replace("to", "").split())
    assert low < mean < high
    assert [r.th.get_text() for r in soup.select("#leaderboard tfoot tr")] == ["mean vote", "floor"]
    assert "fold0 paused" in soup.select("#leaderboard tbody tr")[3].get_text()


def test_every_part_is_there_and_every_picture_has_words(soup, file):
    assert [s["id"] for s in soup.select("main > section")] == ["leaderboard", "ensemble", "errors",
                                                                "uncertainty", "events", "training",
                                                                "environment", "commands"]
    pictures = soup.find_all("img")
    assert all(len(p["alt"]) > 20 and p["src"].startswith("data:image/png;base64,") for p in pictures)
    assert sum(p["alt"].startswith("Event card") for p in pictures) == 4
    assert file.stat().st_size < 15e6
    assert all(soup.find(id=a["href"][1:]) for a in soup.select("nav a"))
    ensemble = soup.find(id="ensemble").get_text()
    assert "thick_fog" in ensemble and "because" in ensemble
    assert "hms-hbac train" in soup.find(id="commands").get_text()


def test_text_of_others_stays_text(soup):
    assert NASTY in soup.find(id="leaderboard").get_text() and NASTY in soup.find(id="environment").get_text()
    assert not soup.find_all("img", src="x")
    assert not [t for t in soup.find_all(True) for a in t.attrs if a.startswith("on")]


def test_nothing_is_loaded_from_elsewhere(soup):
    addresses = [t[a] for t in soup.find_all(True) for a in ("src", "href", "action", "data",
                                                             "poster") if t.has_attr(a)]
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert "url(" not in soup.style.get_text() and "@import" not in soup.style.get_text()
    assert len(soup.find_all("script")) == 1


def test_same_runs_same_page(runs, file, comp_dir, tmp_path):
    "Nothing in the page depends on the moment it was written; only the commands name the file."
    again = report(runs, tmp_path / "report.html", data=comp_dir, n_cards=2)
    assert again.read_text().replace(str(again), "") == file.read_text().replace(str(file), "")


def test_without_data_there_are_no_events_but_the_rest_stands(runs, tmp_path):
    soup = BeautifulSoup(report(runs / "thick_fog", tmp_path / "r.html").read_text(), "html.parser")
    assert soup.find(id="events") is None and soup.find(id="errors")
    assert "Nothing to blend" in soup.find(id="ensemble").get_text()
    assert column(soup, "recipe") == ["thick_fog"]


def test_faults_are_named_with_their_cure(runs, comp_dir, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        report(tmp_path / "nowhere", tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no finished run in this folder.*\n.*hms-hbac train"):
        report(tmp_path / "empty", tmp_path / "r.html")
    with pytest.raises(DataError, match="no finished run .begun: fold0 paused"):
        shutil.copytree(runs / "begun", tmp_path / "paused" / "begun")
        report(tmp_path / "paused", tmp_path / "r.html")
    shutil.copytree(runs / "thin_fog", tmp_path / "broken" / "thin_fog")
    (tmp_path / "broken/thin_fog/fold1/oof.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(DataError, match="fold1/oof.parquet: not readable"):
        report(tmp_path / "broken", tmp_path / "r.html")
    manifest = tmp_path / "broken/thin_fog/fold1/manifest.json"
    manifest.write_text(manifest.read_text().replace('"data": "', '"data": "other'))
    shutil.copy(runs / "thin_fog/fold1/oof.parquet", tmp_path / "broken/thin_fog/fold1")
    with pytest.raises(DataError, match="different data"):
        report(tmp_path / "broken", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_other_data_is_refused_and_an_unreadable_recording_is_named(runs, comp_dir, tmp_path):
    copy = tmp_path / "comp"
    shutil.copytree(comp_dir, copy)
    for f in (copy / "train_eegs").iterdir():
        f.write_bytes(b"PAR1 half a file")
    with pytest.raises(DataError, match="trained on other data"):
        report(runs, tmp_path / "r.html", data=copy)
    eegs = Competition(copy).train.eeg_id.unique()[:5]               # but what they predict of it is shown
    pd.DataFrame({"eeg_id": eegs, **dict.fromkeys(VOTES, 1 / 6)}).to_csv(tmp_path / "s.csv", index=False)
    told = report(runs / "thin_fog", tmp_path / "r.html", data=copy, submission=tmp_path / "s.csv", n_cards=1)
    assert "events with votes)" in BeautifulSoup(told.read_text(), "html.parser").find(id="events").get_text()
    mine = tmp_path / "runs"
    shutil.copytree(runs / "thin_fog", mine / "thin_fog")
    for f in mine.glob("*/*/manifest.json"):
        f.write_text(f.read_text().replace(Competition(comp_dir).fingerprint, Competition(copy).fingerprint))
    soup = BeautifulSoup(report(mine, tmp_path / "r.html", data=copy, n_cards=1).read_text(), "html.parser")
    said = soup.find(id="events").get_text()
    assert "not readable" in said or "cannot" in said
    assert not soup.find(id="events").find_all("img")


# In a browser.

@pytest.fixture(scope="module")
def tab():
    with chromium() as tab:
        yield tab


@pytest.mark.parametrize("width", [390, 1400])
def test_fits_without_complaint_or_request(tab, file, width):
    tab.forget()
    tab.show(file.as_uri(), width)
    assert tab.run("innerWidth") == width
    assert tab.run("document.scrollingElement.scrollWidth") <= width
    assert tab.run("Math.max(...[...document.images].map(i => i.getBoundingClientRect().right))") <= width
    assert tab.run("[...document.images].every(i => i.naturalWidth > 0)")
    heads = tab.run("[...document.querySelectorAll('#leaderboard thead th')].map(t => t.textContent)")
    assert heads == COLUMNS
    inside = "b => b.getBoundingClientRect().right <= innerWidth"
    assert tab.run(f"[...document.querySelectorAll('.scroll')].every({inside})")
    assert tab.complaints() == []
    assert {u for u in tab.requests() if not u.startswith("data:")} == {file.as_uri()}


def test_the_table_sorts_by_mouse_and_keyboard(tab, file):
    tab.show(file.as_uri(), 1400)
    def names():
        rows = "[...document.querySelectorAll('#leaderboard tbody tr')]"
        return tab.run(f"{rows}.map(r => r.cells[0].textContent)")

    def order(i):
        return tab.run(f"document.querySelectorAll('#leaderboard thead th')[{i}].getAttribute('aria-sort')")

    button = "document.querySelectorAll('#leaderboard thead th')[{}].querySelector('button')"
    tab.run(button.format(4) + ".click()")                       # events
    assert (order(4), order(6)) == ("ascending", "none")
    tab.run(button.format(6) + ".click()")                       # wall time: 200, 300, 400 and 1800 s
    assert (names(), order(6), order(4)) == (["thin_fog", "begun", "thick_fog", "middle_fog"], "ascending",
                                             "none")
    tab.run(button.format(6) + ".focus()")
    tab.press("Enter")
    assert (names(), order(6)) == (["middle_fog", "thick_fog", "begun", "thin_fog"], "descending")
    tab.run(button.format(0) + ".click()")
    assert names() == ["begun", "middle_fog", "thick_fog", "thin_fog"]
    for direction in ("ascending", "descending"):                # no score: last, either way
        tab.run(button.format(1) + ".click()")
        assert order(1) == direction and names()[-1] == "begun"
    assert tab.run("document.querySelectorAll('#leaderboard tfoot tr').length") == 2


def test_dark_and_light(tab, file):
    ground = "getComputedStyle(document.body).backgroundColor"
    tab.show(file.as_uri(), 1400)
    light = tab.run(ground)
    tab.show(file.as_uri(), 1400, dark=True)
    assert (light, tab.run(ground)) == ("rgb(255, 255, 255)", "rgb(16, 21, 27)")


def test_everything_is_read_without_javascript(tab, file):
    text = BeautifulSoup(tab.html_without_scripts(file.as_uri()), "html.parser")
    assert [th.get_text() for th in text.select("#leaderboard thead th")][0] == "recipe"
    assert not text.select("thead button") and len(text.select("#leaderboard tbody tr")) == 4
