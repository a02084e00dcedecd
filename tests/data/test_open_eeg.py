"open-eeg: faults of a clone have names, made-up files give the folder they should, the real ones fit."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from apart import apart, command
from scipy.io import loadmat, savemat
from toy_files import cells, write_clones

from hms_hbac.cli import open_eeg as print_open_eeg
from hms_hbac.core import CHANNELS, CLASSES, VOTES, DataError
from hms_hbac.data.check import check
from hms_hbac.data.competition import Competition
from hms_hbac.data.open_eeg import open_eeg, read_pair, read_segments
from hms_hbac.data.recordings import prepare
from hms_hbac.data.windows import WindowDataset
from hms_hbac.signal.host import host_spectrogram


@pytest.fixture
def clones(tmp_path): return write_clones(tmp_path / "clones")


def faults_of(clones):
    return [f"{Path(e.where).name}: {e.what}" for e in read_segments(clones) if isinstance(e, DataError)]


def change(path, **more):
    "Write a .mat file again with other variables (None: without it)."
    old = {k: v for k, v in loadmat(path).items() if not k.startswith("_")} | more
    savemat(path, {k: v for k, v in old.items() if v is not None})


def test_the_folder_holds_what_the_files_hold(clones, tmp_path):
    "Channel by channel, class by class, panel by panel."
    table, faults = open_eeg(clones, tmp_path / "out")
    assert faults == [] and table.source.tolist() == ["K_Sample11", "GRDA_sample2", "SZ_sample1"]
    comp = Competition(tmp_path / "out")
    assert not (check(comp, progress=False).severity == "error").any()
    votes = comp.train.set_index("eeg_id")[list(VOTES)]
    assert votes.loc[1001].to_dict() == {
        "seizure_vote": 9,
        "lpd_vote": 2,
        "gpd_vote": 3,
        "lrda_vote": 4,
        "grda_vote": 5,
        "other_vote": 1,
    }
    assert votes.loc[5002].grda_vote == 4 and votes.loc[5002].lrda_vote == 1
    consensus = comp.train.set_index("eeg_id").expert_consensus.to_dict()
    assert consensus == {9011: "GPD", 5002: "GRDA", 1001: "Seizure"}
    data = clones / "IIIC-SPaRCNet/code_for_figures/Data"
    seg = loadmat(data / "Figure4to6/samples/SZ_sample1.mat")["seg"]
    eeg = pd.read_parquet(tmp_path / "out/train_eegs/1001.parquet")
    for k, name in enumerate(CHANNELS):
        np.testing.assert_array_equal(eeg[name], seg[k].astype("float32"))
    power = comp.read_spectrogram(1001).power
    assert np.flatnonzero(np.isfinite(power[0, 0])).tolist() == list(range(138, 162))  # 277 ... 323 s
    silent = torch.from_numpy(np.pad(seg, ((0, 0), (275 * 200, 275 * 200))))
    whole = host_spectrogram(silent).numpy()  # as if the rest were silent
    np.testing.assert_allclose(power[..., 142:158], whole[..., 142:158], rtol=0.02)
    pair = loadmat(clones / "IIIC-IRR/code_for_figures/Data/eFigure2/K_Sample11.mat")
    eeg, power = comp.read_eeg(9011).signal, comp.read_spectrogram(9011).power
    np.testing.assert_array_equal(eeg[:, 4000:6000], pair["seg_10sec"].astype("float32"))
    assert np.isnan(eeg[:, :4000]).all() and np.isnan(eeg[:, 6000:]).all()
    for k, (_, panel) in enumerate(pair["Sdata"]):
        np.testing.assert_array_equal(power[k], panel.astype("float32"))
    sparcnet = table.set_index("eeg_id").loc[1001, [f"sparcnet_{c}" for c in CLASSES]].tolist()
    assert sparcnet == [0.5, 0.2, 0.1, 0.06, 0.04, 0.1]
    text = (tmp_path / "out/SOURCES.md").read_text()
    for name in ("ODC-By", "10.1212/WNL.0000000000207127", "10.1212/WNL.0000000000201670"):
        assert name in text


def test_everything_downstream_reads_it(clones, tmp_path):
    open_eeg(clones, tmp_path / "out")
    comp = Competition(tmp_path / "out")
    source = prepare(comp, tmp_path / "cache", progress=False)
    batch = WindowDataset(source, comp.test).batch([0, 1, 2])
    assert batch["eeg"].shape == (3, 20, 10_000) and torch.isfinite(batch["eeg"][0, :, 4000:6000]).all()


@pytest.mark.parametrize(
    "name, text",
    [
        ("Figure4to6/samples/PDL_sample1.mat", "PDL_sample1.mat: unknown class 'PDL'"),
        ("Figure4to6/samples/LPD_samplex.mat", "LPD_samplex.mat: is not named <CLASS>_sample<number>.mat"),
        ("Figure4to6/samples/LPD_sample1.mat", "LPD_sample1.mat: no votes for it in Figure3/samples.mat"),
    ],
)
def test_odd_names_are_named(clones, name, text):
    data = clones / "IIIC-SPaRCNet/code_for_figures/Data"
    savemat(data / name, {"seg": np.zeros((20, 10_000))})
    assert faults_of(clones) == [text]


@pytest.mark.parametrize(
    "more, text",
    [
        ({"seg": None, "x": 1.0}, "holds no variable seg"),
        ({"seg": np.zeros((10_000, 20))}, "seg is f(10000, 20), not numbers of shape (20, 10000)"),
        ({"seg": np.zeros((20, 9_999))}, "seg is f(20, 9999), not numbers of shape (20, 10000)"),
        ({"seg": "text"}, "seg is U(1,), not numbers of shape (20, 10000)"),
        ({"seg": np.full((20, 10_000), np.nan)}, "seg holds no finite numbers, or some beyond a billion"),
        ({"seg": np.full((20, 10_000), np.inf)}, "seg holds no finite numbers, or some beyond a billion"),
    ],
)
def test_windows_of_another_kind_are_named(clones, more, text):
    change(clones / "IIIC-SPaRCNet/code_for_figures/Data/Figure4to6/samples/SZ_sample1.mat", **more)
    assert faults_of(clones) == [f"SZ_sample1.mat: {text}"]
    assert len(list(read_segments(clones))) == 3  # the others are there


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", "cannot be read"),
        (b"no MATLAB file at all", "cannot be read"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "cannot be read"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF" + bytes(200), "of version 7.3"),
        (b"\x89HDF" + bytes(1000), "of version 7.3"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    ],
)
def test_foreign_files_are_named(clones, data, text):
    path = clones / "IIIC-IRR/code_for_figures/Data/eFigure2/K_Sample11.mat"
    path.write_bytes(data)
    (found,) = faults_of(clones)
    assert found.startswith("K_Sample11.mat: ") and text in found


def test_two_files_with_one_number_and_a_row_of_the_table_that_cannot_be_used(clones):
    data = clones / "IIIC-SPaRCNet/code_for_figures/Data"
    pairs = clones / "IIIC-IRR/code_for_figures/Data/eFigure2"
    (pairs / "B_Sample11.mat").write_bytes((pairs / "K_Sample11.mat").read_bytes())
    table = loadmat(data / "Figure3/samples.mat")["LUT"]
    table[0, 0][0, 1] = np.array([[0, 0.5, 0.5, 0, 0, 0]])
    table[0, 0][1, 2] = np.full((1, 6), np.nan)
    savemat(data / "Figure3/samples.mat", {"LUT": table})
    found = faults_of(clones)
    assert found[0].startswith("K_Sample11.mat: is there twice") and "B_Sample11.mat" in found[0]
    assert found[1:] == ["SZ_sample1.mat: no valid votes"]  # the other row counts, without probabilities
    kept = {s.source: s for s in read_segments(clones) if not isinstance(s, DataError)}
    assert sorted(kept) == ["B_Sample11", "GRDA_sample2"] and np.isnan(kept["GRDA_sample2"].sparcnet).all()


def test_what_the_clones_lack_is_told(clones, tmp_path, capsys):
    (clones / "IIIC-IRR/code_for_figures/Data/eFigure2/K_Sample11.mat").unlink()
    print_open_eeg(clones, tmp_path / "out")
    told = capsys.readouterr().out
    assert "2 of 24 windows" in told and "0 of 20 pairs" in told and "2 segments of real EEG" in told
    assert f"bdsp-core/IIIC-IRR {clones}/IIIC-IRR" in told


@pytest.mark.parametrize(
    "more, text",
    [
        ({"vv": np.zeros((1, 6))}, "no valid votes"),
        ({"vv": np.array([[1, 2, 3]])}, "the row of six classes is i(1, 3), not numbers of shape (1, 6)"),
        ({"seg_10sec": np.zeros((20, 1999))}, "seg_10sec is f(20, 1999), not numbers of shape (20, 2000)"),
        ({"Sdata": cells([("LX", np.ones((100, 300)))])}, "unknown panel 'LX'"),
        ({"Sdata": np.ones((4, 2))}, "the spectrogram is no table of names and panels"),
    ],
)
def test_pairs_of_another_kind_are_named(clones, more, text):
    change(clones / "IIIC-IRR/code_for_figures/Data/eFigure2/K_Sample11.mat", **more)
    assert faults_of(clones) == [f"K_Sample11.mat: {text}"]


def test_panels_of_another_length_are_left_out_and_told(clones, tmp_path):
    path = clones / "IIIC-IRR/code_for_figures/Data/eFigure2/K_Sample11.mat"
    change(path, Sdata=cells([(p, np.ones((100, n))) for p, n in (("LL", 300), ("RP", 597), ("LP", 300))]))
    segment = read_pair(path)
    assert segment.remarks[1:] == ("panel RP left out: shape (100, 597), not (100, 300)", "no panel RL")
    assert np.isfinite(segment.power).all((1, 2)).tolist() == [True, False, True, False]
    table, _ = open_eeg(clones, tmp_path / "out")
    assert "panel RP left out" in table.set_index("eeg_id").remarks[9011]


def test_missing_parts_and_taken_folders(clones, tmp_path):
    (clones / "IIIC-SPaRCNet/code_for_figures/Data/Figure3/samples.mat").unlink()
    table, faults = open_eeg(clones, tmp_path / "out")
    assert table.source.tolist() == ["K_Sample11"] and len(faults) == 3 and "no such file" in faults[0].what
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(DataError, match="is not empty"):
        open_eeg(clones, tmp_path / "out")
    with pytest.raises(DataError, match="is not empty"):
        open_eeg(clones, clones)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    (clones / "IIIC-IRR/code_for_figures/Data/eFigure2/K_Sample11.mat").unlink()
    with pytest.raises(DataError, match="holds no labelled EEG"):
        open_eeg(clones, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_empty_folder_prints_the_two_commands(tmp_path):
    (tmp_path / "empty").mkdir()
    status, said = apart(command, "open-eeg", tmp_path / "empty", tmp_path / "out")
    assert status == 1
    assert not (tmp_path / "out").exists()
    for name in ("IIIC-SPaRCNet", "IIIC-IRR"):
        assert (
            f"git clone --depth 1 https://github.com/bdsp-core/{name} {tmp_path}/empty/{name}" in said
        )


# ---- the real files


@pytest.fixture(scope="module")
def kit(real, tmp_path_factory):
    if not (real / "iiic").is_dir():
        pytest.skip("HMS_REAL holds no folder iiic")
    out = tmp_path_factory.mktemp("kit") / "out"
    table, faults = open_eeg(real / "iiic", out)
    return real / "iiic", table.set_index("eeg_id"), faults, Competition(out)


def test_all_real_files_are_read(kit):
    folder, table, faults, comp = kit
    files = [
        *folder.glob("*/code_for_figures/Data/Figure4to6/samples/*.mat"),
        *folder.glob("*/code_for_figures/Data/eFigure2/*.mat"),
    ]
    assert faults == [] and sorted(table.source) == sorted(p.stem for p in files)
    assert not (check(comp, progress=False).severity == "error").any() and len(comp.train) == len(files)


def test_real_votes_agree_with_the_names_of_the_files(kit):
    "Of windows with at least ten votes, the majority is the class in the file's name; and SPaRCNet agrees."
    _, table, _, _ = kit
    names = {"SZ": "seizure", "Other": "other"}
    windows = table[table.source.str.contains("_sample")]
    named = windows.source.str.split("_").str[0].map(lambda n: names.get(n, n.lower()))
    sure = windows.n_votes >= 10
    assert sure.sum() >= 4 and (windows.consensus == named)[sure].all()
    network = windows[[f"sparcnet_{c}" for c in CLASSES]].to_numpy().argmax(1)
    assert (np.array(CLASSES)[network] == named).mean() > 0.9


def test_real_spectrograms_fit_the_eeg_in_their_middle(kit):
    "The pairs with four panels: what we compute from the 10 s, against the recorded columns there."
    _, table, _, comp = kit
    whole = [i for i in table.index[table.recorded_spectrogram] if "left out" not in table.remarks[i]]
    assert len(whole) >= 2
    for id in whole:
        seg = torch.from_numpy(comp.read_eeg(id).signal[:, 4000:6000].astype(np.float64))
        made = host_spectrogram(seg, pad=False).numpy()
        recorded = comp.read_spectrogram(id).power
        at = range(100, 200)
        parts = [np.log(recorded[..., first : first + 4]).ravel() for first in at]
        fits = {k: np.corrcoef(np.log(made).ravel(), part)[0, 1] for k, part in zip(at, parts, strict=True)}
        assert fits[148] >= 0.95 and max(fits, key=fits.get) in (147, 148, 149)


def test_real_channels_stand_in_our_order(kit):
    """Neighbours on the scalp are alike, the EKG is like none: the mean correlation of neighbours
    in the order of our channels beats that of every cyclic shift of the rows."""
    _, table, _, comp = kit
    chains = ("Fp1 F7 T3 T5 O1", "Fp2 F8 T4 T6 O2", "Fp1 F3 C3 P3 O1", "Fp2 F4 C4 P4 O2", "Fz Cz Pz")
    rows = [[CHANNELS.index(name) for name in chain.split()] for chain in chains]
    pairs = [pair for row in rows for pair in zip(row[:-1], row[1:], strict=True)]
    total = np.zeros((20, 20))
    for id in table.index[table.source.str.contains("_sample")]:
        total += np.abs(np.corrcoef(comp.read_eeg(id).signal.astype(np.float64)))
    score = [np.mean([total[(a + k) % 20, (b + k) % 20] for a, b in pairs]) for k in range(20)]
    assert int(np.argmax(score)) == 0


def test_lateralised_windows_mirror_when_the_sides_are_swapped(kit):
    "The recorded panels fit the EEG as it is better than the EEG with its sides swapped."
    _, table, _, comp = kit
    whole = [i for i in table.index[table.recorded_spectrogram] if "left out" not in table.remarks[i]]
    for id in whole:
        x = torch.from_numpy(comp.read_eeg(id).signal[:, 4000:6000].astype(np.float64))
        recorded = np.log(comp.read_spectrogram(id).power[..., 148:152])
        right = [
            CHANNELS.index(c)
            for c in (
                "Fp2",
                "F4",
                "C4",
                "P4",
                "F8",
                "T4",
                "T6",
                "O2",
                "Fz",
                "Cz",
                "Pz",
                "Fp1",
                "F3",
                "C3",
                "P3",
                "F7",
                "T3",
                "T5",
                "O1",
                "EKG",
            )
        ]
        made, swapped = (np.log(host_spectrogram(v, pad=False).numpy()) for v in (x, x[right]))
        assert np.abs(made - recorded).mean() < np.abs(swapped - recorded).mean()
