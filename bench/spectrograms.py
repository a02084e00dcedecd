"""Log-mel pictures: librosa's loop over the 16 differences against ours, in one process.

    python bench/spectrograms.py [--seconds 20] [--threads N]

Both get the same synthetic EEGs (16 differences of 50 s) and make four pictures of 128 x 256 from each (log-mel per difference, mean over
a chain). librosa and ours take turns, and the median of each is compared, so that a machine with other work to do slows both. librosa
runs on one core whatever there is; `--threads` are torch's (default 1, so the ratio is one core against one core). A machine with a GPU
also prints how many images per second each view makes at batch 64. The last line is for programs.
"""
import argparse
import time
import warnings

import numpy as np
import torch

from hms_hbac.core import EEG_SAMPLES, SPEC_BINS, SPEC_STEPS, HmsError
from hms_hbac.signal import MONTAGES
from hms_hbac.spectrogram import chain_mean, log_mel

HEIGHT, WIDTH, BATCHES = 128, 256, (1, 8, 32)


def with_librosa(batch):
    "(B, 16, 10000) numpy -> (B, 4, 128, 256): the loop of the published systems."
    import librosa
    out = np.empty((*batch.shape[:2], HEIGHT, WIDTH), np.float32)
    for i, j in np.ndindex(*batch.shape[:2]):
        mel = librosa.feature.melspectrogram(y=batch[i, j], sr=200, hop_length=batch.shape[-1] // WIDTH, n_fft=1024,
                                             n_mels=HEIGHT, fmin=0, fmax=20, win_length=128)
        out[i, j] = (librosa.power_to_db(mel, ref=np.max)[:, :WIDTH] + 40) / 40
    return out.reshape(-1, 4, 4, HEIGHT, WIDTH).mean(2)


def ours(batch):
    with torch.inference_mode():
        return chain_mean(log_mel(batch, HEIGHT, WIDTH))


def timed(f, x):
    start = time.perf_counter()
    f(x)
    return time.perf_counter() - start


def compare(differences, seconds):
    "Rows (batch, librosa's ms per EEG, ours, ratio). librosa does one EEG a turn: its loop knows no batch."
    for _ in range(2): with_librosa(differences[:1].numpy()), ours(differences[:1])       # caches, compiled parts, plans
    error = np.abs(with_librosa(differences[:2].numpy()) - ours(differences[:2]).numpy()).max()
    print(f"largest difference between the two, in scaled units: {error:.1e}")
    for b in BATCHES:
        batch, slow, fast = differences[:b], [], []
        ours(batch)
        end = time.perf_counter() + seconds / len(BATCHES)
        while len(fast) < 3 or (time.perf_counter() < end and len(fast) < 50):
            slow.append(timed(with_librosa, differences[len(slow) % len(differences)][None].numpy()))
            fast.append(timed(ours, batch) / b)
        slow, fast = 1e3 * np.median(slow), 1e3 * np.median(fast)
        yield b, slow, fast, slow / fast


def views_per_second(batch=64, seconds=1.0):
    "Print images per second of every view on the GPU."
    if not torch.cuda.is_available():
        print("views: left out, no GPU here")
        return
    try:
        from hms_hbac.views import VIEWS
    except ImportError as e:
        print(f"views: left out ({e})")
        return
    eeg = torch.randn(batch, 20, EEG_SAMPLES, device="cuda").cumsum(-1)
    for name, make in VIEWS.items():
        try:
            view = make().cuda().eval()
        except (TypeError, ValueError, HmsError):
            continue                      # a building block that needs arguments
        steps = view.spec_steps or SPEC_STEPS
        data = {"eeg": eeg, "spectrogram": torch.rand(batch, 4, SPEC_BINS, steps, device="cuda").exp()}
        with torch.inference_mode():
            view(data)
            torch.cuda.synchronize()
            start, n = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                view(data)
                torch.cuda.synchronize()
                n += batch
            print(f"{name:24} {str(tuple(view.shape)):18} {n / (time.perf_counter() - start):10.0f} images/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="time to measure for, all batch sizes together (default 20)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")       # librosa warns of empty mel filters
    rng = np.random.default_rng(0)
    eeg = torch.from_numpy(rng.normal(size=(max(BATCHES), 20, EEG_SAMPLES)).astype(np.float32)).cumsum(-1)
    differences = MONTAGES["chains"].derive(eeg)
    print(f"{'batch':>5} {'librosa ms/EEG':>15} {'ours ms/EEG':>12} {'ratio':>7}")
    ratios = {}
    for b, slow, fast, ratio in compare(differences, args.seconds):
        print(f"{b:5} {slow:15.2f} {fast:12.2f} {ratio:7.1f}", flush=True)
        ratios[b] = ratio
    views_per_second()
    print(" ".join(f"ratio_b{b}={r:.2f}" for b, r in ratios.items()))


if __name__ == "__main__":
    main()
