"Recipes side by side: the window that is asked for, and each picture once."
import pytest

from hms_hbac.core import DataError
from hms_hbac.data.competition import Competition, events
from hms_hbac.evaluation.compare import compare, folder_window, simulated_window


def test_a_folders_window(comp_dir):
    comp = Competition(comp_dir)
    table = events(comp.train)
    batch, title = folder_window(comp)
    assert batch["n_votes"][0] == table.n_votes.max() and f"{table.n_votes.max()} votes" in title
    other = int(table.eeg_id.iloc[-1])
    assert folder_window(comp, other)[1].startswith(f"EEG {other}: ")
    with pytest.raises(DataError, match="no training EEG 3"): folder_window(comp, 3)


def test_one_picture_for_each_view():
    "Two recipes with one view, and one that stacks four pictures."
    names = ["panels_b0", "panels_b2", "four_pictures_vit"]
    fig = compare(simulated_window("grda", 1)[0], names, title="grda")
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert len(titles) == 5 and titles[0].startswith("panels_b0, panels_b2") and fig.get_suptitle() == "grda"
