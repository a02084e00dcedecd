"""A pixel of any view's picture, read in Hz and s off the figure's own ticks, is where the signal was put."""
import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hms_hbac.core import CHAINS, CHANNELS, EEG_RATE, PANELS, SPEC_FREQUENCIES
from hms_hbac.draws import sample_keys
from hms_hbac.views.algebra import Tile, between
from hms_hbac.views.pictures import view_image
from hms_hbac.views.raw import WINNER_VIEWS
from hms_hbac.views.systems import EXPRESSIONS, view
from hms_hbac.views.transforms import Around

# Hz, s in the EEG, s in the ten minutes
TONES = [(5, -2.1, -119), (8, 1.4, 61), (10, 2, 151), (12.5, -1, -41), (15.5, .6, 201)]


def tones(panel, seed=0):
    """A batch of five: in the chain `panel` (None: all four), half a second of one frequency in the EEG, some
    seconds in the spectrogram."""
    g = np.random.default_rng(seed)
    t = np.arange(10_000) / EEG_RATE - 25
    eeg = g.standard_normal((5, 20, 10_000)) * 2
    power = np.full((5, 4, 100, 400), .05)
    f, s = SPEC_FREQUENCIES[:, None], 2. * np.arange(400) - 399
    for i, (hz, second, far) in enumerate(TONES):
        burst = 10 * np.sin(2 * np.pi * hz * (t - second)) * np.exp(-((t - second) / .3) ** 2)
        for p in PANELS if panel is None else [panel]:
            for name, sign in zip(CHAINS[p][1:4], (1, -1, 1), strict=True):
                eeg[i, CHANNELS.index(name)] += sign * burst
            power[i, PANELS.index(p)] += 20 * np.exp(-((f - hz) / .5) ** 2 - ((s - far) / 6) ** 2)
    return {"eeg": torch.tensor(eeg, dtype=torch.float32),
            "spectrogram": torch.tensor(power, dtype=torch.float32), "key": sample_keys(0, 0, range(5))}


@pytest.fixture(scope="module")
def stimuli():
    return {p: tones(p) for p in (*PANELS, None)}


def scale(axis, low, high):
    """(slope, offset) of the value that an axis' tick texts give to a place, from the ticks between `low` and
    `high`."""
    marks = [(at, float(text.get_text())) for at,
             text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False) if low <= at <= high]
    assert len(marks) >= 2, marks
    slope, offset = np.polyfit(*zip(*marks, strict=False), 1)
    assert np.allclose([slope * at + offset for at, _ in marks], [v for _, v in marks], atol=1e-6)
    return slope, offset


def read(ax):
    """For each panel of an axes: (name, loudness, Hz, s, Hz per row, s per column, first and last s) of its
    brightest spot, by ticks, lines and texts alone."""
    x = np.array(ax.images[0].get_array())
    (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    walls = [low,
             *sorted(line.get_ydata()[0] for line in ax.lines if line.get_ydata()[0] == line.get_ydata()[1]
                     and len(set(line.get_xdata())) == 2), high]
    texts = sorted(ax.texts, key=lambda t: t.get_position()[1])
    assert len(texts) == len(walls) - 1
    columns = slice(int(np.ceil(left)), int(right))
    dt, t0 = scale(ax.xaxis, left, right)
    out = []
    for a, b, text in zip(walls, walls[1:], texts, strict=False):
        assert a < text.get_position()[1] < b
        rows = slice(int(np.ceil(a)), int(b))
        part = x[rows, columns]
        bright = np.clip(part - part.min() - .85 * np.ptp(part), 0, None)
        i, j = ((bright.sum(1 - k) * np.arange(bright.shape[k])).sum() / max(bright.sum(), 1e-9)
                for k in (0, 1))
        df, f0 = scale(ax.yaxis, a, b)
        out.append((text.get_text(), part.max(), df * (i + .5 + rows.start) + f0,
                    dt * (j + .5 + columns.start) + t0, abs(df), dt, dt * left + t0, dt * right + t0))
    return out


def holds(name, panel, far):
    """Must a panel of this name show a tone that was put into `panel` (None: all four)? Folded panels are
    read where the tone is in all."""
    if name in PANELS: return name == panel
    # in EEG pictures noise has the largest range
    return panel is not None and far if name == "range" else panel is None


def errors(panel, axs, tone):
    """{(axes, panel name): (Hz error, s error, Hz per row, s per column)} of every panel that must show
    `tone`, put into `panel`."""
    hz, near, far = tone
    out = {}
    for number, ax in enumerate(axs):
        spots = read(ax)
        host = spots[0][-1] > 60
        second = far if host else near
        if not spots[0][-2] + 1 < second < spots[0][-1] - 1: continue                # beyond this window
        for name, loudness, f, s, df, dt, *_ in spots:
            if not holds(name, panel, host): continue
            brightest = loudness == max(spot[1] for spot in spots)
            assert name not in PANELS or brightest, f"{panel} is brightest elsewhere than in {name}"
            out[number, name] = f - hz, s - second, df, dt
    return out


IMAGES = [n for n in EXPRESSIONS if not n.startswith("eight") and "wavenet" not in n and n != "raw_image"]


@pytest.mark.parametrize("name", IMAGES)
def test_brightest_spot(name, stimuli):
    """By the ticks it is within a row of its frequency and a column of its second, in every panel of every
    stretch of time."""
    v, seen, names = view(name).eval(), {}, set()
    for panel, batch in stimuli.items():
        for picture, tone in zip(v(batch), TONES, strict=False):
            for window in range(len(picture) if picture.ndim == 4 else 1):
                axs = view_image(picture, v, window=window)
                names |= {(i, t.get_text()) for i, ax in enumerate(axs) for t in ax.texts}
                for where, error in errors(panel, axs, tone).items(): seen.setdefault(where, []).append(error)
                plt.close("all")
    assert set(seen) == {n for n in names if n[1] != "range" or "spectrogram" in v.needs}
    for where, found in seen.items():
        hz, s, df, dt = np.array(found).T
        assert (np.abs(hz) < df).all() and (np.abs(s) < dt).all(), (where, hz, s)
        assert abs(hz.mean()) < df[0] / 2 and abs(s.mean()) < dt[0] / 2, (where, hz, s)


def spike(electrode, second, hz=10):
    t = np.arange(10_000) / EEG_RATE - 25
    eeg = np.random.default_rng(0).standard_normal((1, 20, 10_000)) * .1
    eeg[0, CHANNELS.index(electrode)] += 50 * np.sin(2 * np.pi * hz * t) * np.exp(-((t - second) / .3) ** 2)
    return {"eeg": torch.tensor(eeg, dtype=torch.float32)}


@pytest.mark.parametrize("name, second, bands",
                         [("eight", 2, ["0.5-20 Hz"]), ("eight", -3.5, ["0.5-20 Hz"]),
                          ("wavenet", 17, ["< 20 Hz"]),
                                                 ("eight_bands", 1, ["0.5-20 Hz", "8-12 Hz"])])
def test_sequences(name, second, bands):
    """The traces that swing, by their labels, and when, by the x values (causal filters are some hundredths
    of a second late)."""
    v = view(name).eval()
    ax, = view_image(v(spike("T4", second))[0], v)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert len(ax.lines) == len(labels) == v.shape[0] and ax.get_xlabel() == "s"
    swing = [np.ptp(line.get_ydata()) for line in ax.lines]
    loud = [label for label, size in zip(labels, swing, strict=False) if size > max(swing) / 3]
    assert loud == [f"{d} {b}" for b in bands for d in ("Fp2-T4", "T4-O2")]
    line = ax.lines[labels.index(loud[0])]
    power = np.square(line.get_ydata() - np.mean(line.get_ydata()))
    assert np.average(line.get_xdata(), weights=power) == pytest.approx(second + .05, abs=.06)
    for tick, label, line in zip(ax.get_yticks(), labels, ax.lines, strict=False):
        assert tick == pytest.approx(np.mean(line.get_ydata()), abs=.2 * max(swing)), label
    plt.close("all")


def test_raw_image():
    v = view("raw_image").eval()
    ax, = view_image(v(spike("O1", -7))[0], v)
    labels = dict(zip((t.get_text() for t in ax.get_yticklabels()), ax.get_yticks(), strict=False))
    # the first electrode at the top
    assert list(labels) == "Fp1,T3,C3,O1,Fp2,C4,T4,O2".split(",") and ax.get_ylim() == (8, 0)
    x = np.array(ax.images[0].get_array())
    row = int(np.square(x).max(1).argmax())
    dt, t0 = scale(ax.xaxis, 0, 10_000)
    assert labels["O1"] == row + .5 and dt * (np.abs(x[row]).argmax() + .5) + t0 == pytest.approx(-7, abs=.4)
    plt.close("all")


def test_places_and_limits():
    """Stretches stand in the order and proportion of their pixels, low frequencies at the bottom, walls
    between panels, the label marked."""
    v = view("mosaic512").eval()
    fifty, host, ten = view_image(np.zeros(v.shape), v)
    assert np.allclose([ax.get_xlim() for ax in (fifty, host, ten)],
                       [(0, 2048 / 7), (2048 / 7, 512), (2048 / 7, 512)])
    # the array is upside down: its last rows below
    assert [ax.get_ylim() for ax in (fifty, host, ten)] == [(512, 0), (256, 0), (512, 256)]
    boxes = [ax.get_position() for ax in (fifty, host, ten)]
    assert boxes[0].x1 < boxes[1].x0 and boxes[2].y1 < boxes[1].y0
    assert boxes[0].y0 == pytest.approx(boxes[2].y0)
    assert (boxes[0].x1 - boxes[0].x0) / (boxes[1].x1 - boxes[1].x0) == pytest.approx(4 / 3, rel=1e-3)
    label = [line.get_xdata()[0] for line in fifty.lines if line.get_linestyle() == ":"]
    dt, t0 = scale(fifty.xaxis, *fifty.get_xlim())
    assert [dt * c + t0 for c in label] == pytest.approx([-5, 5])
    plt.close("all")


def test_zeros_beyond_the_picture_stay_empty():
    v = view("kaggle_eeg").eval()
    axs = view_image(np.zeros(v.shape), v)
    assert [ax.get_ylim() for ax in axs] == [(56, 456)] * 2
    assert axs[0].get_position().y0 > axs[0].figure.subplotpars.bottom + .05
    second = view_image(np.zeros(view("multiwindow").shape), view("multiwindow").eval(), window=1)[0]
    assert second.get_xlim() == (0, 172)
    assert [t.get_text() for t in second.get_xticklabels()] == ["0", "100", "200", "300"]
    plt.close("all")


def axis_names(v, window=0):
    names = [(ax.get_ylabel(), ax.get_xlabel())
             for ax in view_image(np.random.default_rng(0).random(v.shape), v, window=window)]
    plt.close("all")
    return names


class Mirror(Around):
    def forward(self, batch): return self.view.forward(batch).flip(-1)


def test_what_a_view_does_not_know():
    """A random place has no seconds, an unknown change no axes at all, and a picture of another shape none
    either."""
    assert axis_names(view("multiwindow").train()) == [("Hz", "column"), *[("Hz", "s")] * 4]
    assert axis_names(view("CropPad(Panels(), 400, 200, random=True)").train()) == [("Hz", "column")]
    assert axis_names(view("CropPad(Panels(), 400, 200, random=True)").eval()) == [("Hz", "s")]
    assert axis_names(view("SlidingWindows(HStack(Panels(), Panels(steps=100)))").train()) == [("row",
                                                                                                "column")]
    assert axis_names(view("eight").train()) == [("", "sample")]
    assert axis_names(view("wavenet").train()) == [("", "s")]        # all 50 s: nothing is drawn
    assert axis_names(Mirror(view("attention"))) == [("row", "column")] * 3
    assert axis_names(Mirror(view("raw_image"))) == [("row", "column")]
    assert axis_names(view("Panels(steps=301)").eval()) == [("Hz", "column")]
    assert axis_names(view("RawImage(rows=50)").eval()) == [("", "column")]
    assert [(ax.get_ylabel(), ax.get_xlabel())
            for ax in view_image(np.zeros((1, 400, 299)), view("panels"))] == [("row", "column")]
    assert view("attention").blocks == Mirror(view("attention")).blocks == [(0, 256), (256, 512), (512, 912)]
    plt.close("all")


def test_rows_and_columns_name_pixels():
    ax, = view_image(np.random.default_rng(0).random((1, 40, 60)))
    for axis in (ax.xaxis, ax.yaxis):
        assert [float(t.get_text()) for t in axis.get_ticklabels()] == [at - .5 for at in axis.get_ticklocs()]
    plt.close("all")


SHORT = "Panels(steps=100)"
COMPOSED = [f"Grid([[{SHORT}, Stats({SHORT})], [Flip({SHORT}), {SHORT}]])",
            "CropPad(Resize(HStack(Mels(10, 100), Panels(steps=400)), 333, 301), 200, 200)"]


@pytest.mark.parametrize("text", [*EXPRESSIONS.values(), *WINNER_VIEWS.values(), *COMPOSED])
def test_tiles_lie_inside_and_do_not_overlap(text):
    v = view(text)
    covered = np.zeros(v.shape[-2:], int)
    for t in v.tiles():
        (a, b), (c, d) = (tuple(round(e) for e in edges) for edges in (t.rows, t.columns))
        assert 0 <= a < b <= v.shape[-2] and 0 <= c < d <= v.shape[-1] and (t.seconds is None
                                                                            or t.seconds[0] < t.seconds[1])
        covered[a:b, c:d] += 1
    blank = any(word in repr(v) for word in ("CropPad", "Sliding", "Bundle"))
    assert covered.max() == 1 and (covered.min() == 1 or blank)


def test_between_goes_back():
    t = Tile((10., 40.), (0, 7), "", (20., .5), (-3, 4))
    for row in (10, 17.5, 40): assert between(between(row, t.rows, t.hz), t.hz, t.rows) == pytest.approx(row)
