"""The page of a recording of a day: small, quiet, and whole at both widths, light and dark."""
import numpy as np
import pandas as pd
import pytest
from browser import chromium

from hms_hbac.core import CLASSES
from hms_hbac.evaluation.burden import burden, totals
from hms_hbac.evaluation.reading import ranking, ranking_page, summary
from hms_hbac.evaluation.recording import NOTE, recording_page
from hms_hbac.inference.reader import Reading
from hms_hbac.inference.sliding import window_starts


class Noise:
    "A stream that needs no memory."
    source = None

    def read(self, start, n):
        return np.random.default_rng(start).normal(0, 30, (20, n)).astype(np.float32)


@pytest.fixture(scope="module")
def day():
    rng, seconds = np.random.default_rng(0), 86400
    time = window_starts(seconds * 200) / 200 + 25
    prob = rng.dirichlet(np.full(6, .5), len(time))
    prob[(time > 3600 * 5) & (time < 3600 * 5 + 700)] = np.eye(6)[0]
    table = pd.DataFrame(prob, columns=list(CLASSES)).assign(bad=(time // 1800) % 9 == 0, flags="")
    table.insert(0, "time", time)
    power = np.exp(rng.normal(1, 2, (4, 100, seconds // 10))).astype(np.float32)
    about = {"recording": {"name": "<night>.edf", "start": "2024-03-01 21:30:00", "age": 12}, "models": []}
    return Reading(table, power, 2., float(seconds), ["missing channel EKG"], [], about, Noise())


@pytest.fixture(scope="module")
def file(day, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(recording_page(day), encoding="utf-8")
    return path


def test_a_day_is_small_and_says_what_it_is(day, file):
    html = file.read_text(encoding="utf-8")
    assert len(html) < 5e6
    assert NOTE in html and "<night>" not in html and "NOT the models" in html
    assert summary(day)["note"] == NOTE
    hours = burden(day)
    assert len(hours) == 24 and hours.rule[5].endswith("10 min")
    assert abs(hours.minutes.sum() / 60 - totals(day)["hours_counted"]) < 1e-9


def test_chromium_shows_it_without_requests(file, tmp_path):
    with chromium() as tab:
        for width, dark in ((390, False), (390, True), (1400, False), (1400, True)):
            tab.forget()
            tab.show(file.as_uri(), width, dark=dark)
            tab.page.wait_for_function("document.querySelector('.trend output').textContent.length > 10")
            assert tab.complaints() == [] and tab.requests() == {file.as_uri()}
            assert tab.run("document.documentElement.scrollWidth") <= width
            assert tab.run("[...document.images].length") == 12
            short = "document.querySelector('#overview .scroll')"            # needs no scrolling
            assert tab.run(f"{short}.scrollWidth <= {short}.clientWidth")
        before = tab.run("document.querySelector('.trend output').textContent")
        drawn = "document.querySelector('canvas').toDataURL().length"
        whole = tab.run(drawn)
        for button in ("in", "in", "on"): tab.page.click(f"button[value={button}]")
        assert tab.run("document.querySelector('.trend output').textContent") != before
        assert tab.run(drawn) != whole
        tab.page.focus("canvas")
        tab.press("0")
        assert tab.run("document.querySelector('.trend output').textContent") == before
        box = tab.page.locator("canvas").bounding_box()
        tab.page.mouse.move(box["x"] + 300, box["y"] + 40)
        tab.page.mouse.down()
        tab.page.mouse.move(box["x"] + 500, box["y"] + 40)
        tab.page.mouse.up()
        assert tab.run("document.querySelector('.trend output').textContent") != before
        assert tab.complaints() == []


def test_the_still_picture_stands_in_for_the_script(file):
    with chromium() as tab:
        assert "probabilities of six classes over the recording" in tab.html_without_scripts(file.as_uri())


def test_recordings_are_ranked_by_seizure(day):
    quiet = summary(day) | {"name": "quiet", "fault": ""}
    share = quiet["total"]["share"] | {"seizure": .9}
    loud = quiet | {"name": "loud", "total": quiet["total"] | {"share": share}}
    frame = ranking([{"name": "gone", "fault": "no such file\n  cure: look"}, quiet, loud])
    assert frame.recording.tolist() == ["loud", "quiet", "gone"]
    assert frame.fault.tolist() == ["", "", "no such file"]
    assert NOTE in ranking_page(frame)
