"""Log-mel pictures: librosa's loop over the 16 differences against ours, in one process.

    python bench/spectrograms.py [--seconds 20] [--threads N]

Both get the same synthetic EEGs (20 channels of 50 s) and make four panels of 128 x 256 from each (16 differences, log-mel of each, mean
over a chain): librosa in the published systems' loop, ours as the view `Mels`, just as training uses it. They take turns, librosa at
4 EEGs and ours at 32 in batches of 1, 8 or 32, and medians are compared, so that a machine with other work to do slows both. librosa runs
on one core (more make its small products slower); `--threads` are torch's (default 1, so the ratio is one core against one core). A machine
with a GPU also prints how many images per second each view makes at batch 64. The last line is for programs.
"""
import argparse
import time
import warnings

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hms_hbac.core import EEG_SAMPLES, PANELS, SPEC_BINS, SPEC_STEPS, HmsError
from hms_hbac.signal.filters import MONTAGES
from hms_hbac.views.systems import VIEWS, Mels

HEIGHT, WIDTH, BATCHES = 128, 256, (1, 8, 32)


def with_librosa(batch):
    "(B, 20, 10000) -> (B, 1, 512, 256): the loop of the published systems."
    import librosa
    differences = MONTAGES["chains"].derive(batch).numpy()
    out = np.empty((*differences.shape[:2], HEIGHT, WIDTH), np.float32)
    for i, j in np.ndindex(*differences.shape[:2]):
        mel = librosa.feature.melspectrogram(y=differences[i, j], sr=200, hop_length=differences.shape[-1] // WIDTH, n_fft=1024,
                                             n_mels=HEIGHT, fmin=0, fmax=20, win_length=128)
        out[i, j] = (librosa.power_to_db(mel, ref=np.max)[:, :WIDTH] + 40) / 40
    return out.reshape(-1, 4, 4, HEIGHT, WIDTH).mean(2).reshape(-1, 1, 4 * HEIGHT, WIDTH)


def ours(batch, view=Mels(50, HEIGHT, WIDTH, ",".join(PANELS))):
    with torch.inference_mode():
        return view({"eeg": batch})


def timed(f, batches):
    "Milliseconds per EEG."
    start = time.perf_counter()
    for batch in batches: f(batch)
    return 1e3 * (time.perf_counter() - start) / sum(map(len, batches))


def compare(eeg, seconds):
    "Rows (batch, librosa's ms per EEG, ours, ratio)."
    for _ in range(2): with_librosa(eeg[:1]), ours(eeg[:1])       # caches, compiled parts, plans
    error = np.abs(with_librosa(eeg[:2]) - ours(eeg[:2]).numpy()).max()
    print(f"largest difference between the two, in scaled units: {error:.1e}")
    for b in BATCHES:
        slow, fast = [], []
        ours(eeg[:b])
        end = time.perf_counter() + seconds / len(BATCHES)
        while len(fast) < 3 or time.perf_counter() < end:
            slow.append(timed(with_librosa, eeg[:4].split(1)))
            fast.append(timed(ours, eeg.split(b)))
        slow, fast = np.median(slow), np.median(fast)
        yield b, slow, fast, slow / fast


def views_per_second(batch=64, seconds=1.0):
    "Print images per second of every view on the GPU."
    if not torch.cuda.is_available():
        print("views: left out, no GPU here")
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
    with_librosa(torch.zeros(1, 20, EEG_SAMPLES))                 # loads the BLAS that the next line limits
    threadpool_limits(1, user_api="blas")
    warnings.simplefilter("ignore")       # librosa warns of empty mel filters
    rng = np.random.default_rng(0)
    eeg = torch.from_numpy(rng.normal(size=(max(BATCHES), 20, EEG_SAMPLES)).astype(np.float32)).cumsum(-1)
    print(f"{'batch':>5} {'librosa ms/EEG':>15} {'ours ms/EEG':>12} {'ratio':>7}")
    ratios = {}
    for b, slow, fast, ratio in compare(eeg, args.seconds):
        print(f"{b:5} {slow:15.2f} {fast:12.2f} {ratio:7.1f}", flush=True)
        ratios[b] = ratio
    views_per_second()
    print(" ".join(f"ratio_b{b}={r:.2f}" for b, r in ratios.items()))


if __name__ == "__main__":
    main()
