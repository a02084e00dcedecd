"""Members trained on simulated patients read a recording of another one; its burden is what their errors
on held-out patients predict."""
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from hms_hbac.core import CLASSES, EEG_RATE, ELECTRODES, VOTES
from hms_hbac.draws import seed_everything
from hms_hbac.evaluation.burden import burden, expected_burden
from hms_hbac.inference import Reader
from hms_hbac.models.recipe import build, save_recipe
from hms_hbac.models.schema import validate
from hms_hbac.simulate.patterns import compose, draw_scene
from hms_hbac.training.checkpoints import save_weights

RECIPE = validate(dict(name="sides", precision="fp32", view="LeftRight(128, 20)",
                       net=dict(kind="left_right", hidden=8, depth=1, dropout=0)))
PATIENTS = 8


def simulated(patient, seconds, classes):
    "EEG of a patient in which `classes` follow one another, each for `seconds`."
    rng = np.random.default_rng([8, patient])
    shares = np.eye(6, dtype=np.float32)[classes].T.repeat(seconds * EEG_RATE, 1)
    n = seconds * EEG_RATE
    seizures = [(i * n, (i + 1) * n) for i, c in enumerate(classes) if c == 0]
    return compose(rng, draw_scene(rng, rng), shares, seizures)


def rows_of(patients):
    "Windows (N, 20, 10000) of patients, their classes and whose they are."
    eeg, truth, whose = [], [], []
    for p in patients:
        x = simulated(p, 60, range(6))
        for c in range(6):
            for a in (0, 1500):
                eeg.append(x[:, c * 12_000 + a:][:, :10_000])
                truth.append(c)
                whose.append(p)
    return torch.from_numpy(np.stack(eeg)), np.array(truth), np.array(whose)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two folds, and their out-of-fold table."
    folder, tables = tmp_path_factory.mktemp("runs"), []
    eeg, truth, whose = rows_of(range(PATIENTS))
    picture = build(RECIPE).eval().view({"eeg": eeg})
    votes = 20 * np.eye(6)[truth]
    for fold in range(2):
        seed_everything(fold)
        held, system = whose % 2 == fold, build(RECIPE)
        step = torch.optim.Adam(system.parameters(), 1e-2)
        x, y = picture[~held], torch.from_numpy(truth[~held])
        system.train()
        for _ in range(30):
            for part in torch.randperm(len(x)).split(20):
                loss = torch.nn.functional.cross_entropy(system.classify(x[part]), y[part])
                step.zero_grad()
                loss.backward()
                step.step()
        save_recipe(RECIPE, folder / f"sides/fold{fold}/recipe.yaml")
        save_weights(folder / f"sides/fold{fold}/model.safetensors", system.state_dict())
        with torch.no_grad(): prob = system.eval().classify(picture[held]).softmax(1).numpy()
        table = pd.DataFrame(prob, columns=list(CLASSES)).assign(patient_id=whose[held], n_votes=20)
        tables.append(table.assign(**dict(zip(VOTES, votes[held].T, strict=True))))
    return folder, pd.concat(tables, ignore_index=True)


def test_burden_lies_where_out_of_fold_errors_predict(trained, tmp_path):
    import edfio
    folder, oof = trained
    right = (oof[list(CLASSES)].to_numpy().argmax(1) == oof[list(VOTES)].to_numpy().argmax(1)).mean()
    assert right > .3                                              # one in six is chance
    order = [5, 2, 5, 0, 5, 4]
    x = simulated(PATIENTS + 1, 600, order)[:19].clip(-3000, 3000)             # an hour of four classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = dict(physical_dimension="uV", physical_range=(-3200, 3200))
        signals = [edfio.EdfSignal(v, EEG_RATE, label=n, **how) for n, v in zip(ELECTRODES, x, strict=True)]
        edfio.Edf(signals).write(tmp_path / "a.edf")
    reading = Reader(folder, step=10, device="cpu").read(tmp_path / "a.edf", progress=False)
    found = burden(reading)[list(CLASSES)].to_numpy()
    windows = int(reading.valid.sum())
    truth = np.bincount(order, minlength=6)[None] / len(order)
    expected = expected_burden(truth, oof, windows=windows)
    assert ((expected[..., 1] <= found) & (found <= expected[..., 2])).all(), (found, expected)
    assert (expected[..., 2] - expected[..., 1]).max() < .95                # it says something
    wrong = [expected_burden(one[None], oof, windows=windows) for one in np.eye(6)]   # one class alone
    assert not all(((w[..., 1] <= found) & (found <= w[..., 2])).all() for w in wrong)


def table_of(counts):
    "Calls (patients, 6, 6) as an out-of-fold table."
    p, k, c = (np.repeat(x, counts.ravel()) for x in np.indices(counts.shape).reshape(3, -1))
    votes = pd.DataFrame(20 * np.eye(6)[k], columns=list(VOTES))
    return pd.DataFrame(np.eye(6)[c], columns=list(CLASSES)).join(votes).assign(patient_id=p, n_votes=20)


def drawn(rng, alpha):
    gamma = rng.standard_gamma(alpha + 1e-9)
    return gamma / gamma.sum(-1, keepdims=True)


@pytest.mark.parametrize("patients, spread", [(6, 1.0), (6, 20.0), (25, 1.0)])
def test_the_interval_holds_what_it_promises_of_new_patients(patients, spread):
    "Patients of a known population: 95 % of a new one's burdens lie inside (1,000 trials: .93 to .97)."
    inside, width = [], []
    for trial in range(200):
        rng = np.random.default_rng([patients, trial])
        mean = .7 * np.eye(6) + .3 * rng.dirichlet(np.ones(6), 6)
        rates = drawn(rng, np.broadcast_to(spread * mean, (patients + 1, 6, 6)))
        events = rng.integers(1, 5, (patients, 6)) * (rng.random((patients, 6)) < .5)
        oof = table_of(rng.multinomial(events, rates[:-1]))
        truth = rng.dirichlet(np.full(6, .5), 1)
        found = truth @ drawn(rng, rates[-1])                           # one recording of the new patient
        _, low, high = expected_burden(truth, oof, draws=600).transpose(2, 0, 1)
        inside.append((low <= found) & (found <= high))
        width.append(high - low)
    assert .92 <= np.mean(inside) <= .99 and np.mean(width) < .6, (np.mean(inside), np.mean(width))


def test_a_class_that_one_patient_had_is_hardly_known():
    "Two events of one patient, both called right: the next patient's may be called something else."
    one = np.zeros((1, 6, 6), int)
    one[0, 0, 0] = 2
    many = np.tile(one, (40, 1, 1))
    seizures = np.eye(6)[[0]]
    few, sure = (expected_burden(seizures, table_of(x))[0, 0] for x in (one, many))
    assert few[1] < .1 and sure[1] > .8 and few[0] < sure[0]
