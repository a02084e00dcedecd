"""Log-mel pictures: librosa's loop over the 16 differences against ours, in one process.

    python bench/spectrograms.py [--seconds 20] [--threads N]

Both get the same synthetic EEGs (20 channels of 50 s) and make four panels of 128 x 256 from each (16
differences, log-mel of each, mean
over a chain): librosa in the published systems' loop, ours as the view `Mels`, just as training uses it.
They take turns, librosa at
4 EEGs and ours at 32 in batches of 1, 8 or 32, and medians are compared, so that a machine with other work
to do slows both. librosa runs
on one core (more make its small products slower); `--threads` are torch's (default 1, so the ratio is one
core against one core). Then the winners' wavelets and spectra (`WINNERS`), each against a straightforward
loop with scipy or librosa. A machine
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
from hms_hbac.signal.wavelets import magnitudes, superlets, wavelet_frequencies
from hms_hbac.views.systems import VIEWS, Mels
from hms_hbac.views.winners import mel_decibels

HEIGHT, WIDTH, BATCHES = 128, 256, (1, 8, 32)


def with_librosa(batch):
    "(B, 20, 10000) -> (B, 1, 512, 256): the loop of the published systems."
    import librosa
    differences = MONTAGES["chains"].derive(batch).numpy()
    out = np.empty((*differences.shape[:2], HEIGHT, WIDTH), np.float32)
    for i, j in np.ndindex(*differences.shape[:2]):
        mel = librosa.feature.melspectrogram(y=differences[i, j], sr=200,
                                             hop_length=differences.shape[-1] // WIDTH, n_fft=1024,
                                             n_mels=HEIGHT, fmin=0, fmax=20, win_length=128)
        out[i, j] = (librosa.power_to_db(mel, ref=np.max)[:, :WIDTH] + 40) / 40
    return out.reshape(-1, 4, 4, HEIGHT, WIDTH).mean(2).reshape(-1, 1, 4 * HEIGHT, WIDTH)


OURS = Mels(50, HEIGHT, WIDTH, ",".join(PANELS))


def ours(batch):
    with torch.inference_mode():
        return OURS({"eeg": batch})


def timed(f, batches, clock=time.perf_counter):
    "Milliseconds per EEG, by the `clock`."
    start = clock()
    for batch in batches: f(batch)
    return 1e3 * (clock() - start) / sum(map(len, batches))


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


def kernel(frequency, cycles):
    """A Morlet wavelet at 200 Hz, as PyWavelets' and scipy's users write it; magnitude 1 for a cosine of
    amplitude 1."""
    deviation = cycles / (2 * np.pi * frequency)
    t = np.arange(-int(5 * deviation * 200), int(5 * deviation * 200) + 1) / 200
    wave = np.exp(2j * np.pi * frequency * t - (t / deviation)**2 / 2)
    return 2 * wave / (np.sqrt(2 * np.pi) * deviation * 200)


def convolved(x, frequencies, cycles=6):
    "(16, T) -> (16, F, T): one convolution for each signal and frequency."
    from scipy.signal import fftconvolve
    return np.stack([[np.abs(fftconvolve(row, kernel(f, cycles), "same")) for f in frequencies] for row in x])


def librosa_mels(x, n_fft, window, hop, n_mels, fmin, fmax):
    import librosa
    mels = [librosa.feature.melspectrogram(y=row, sr=200, n_fft=n_fft, win_length=window, hop_length=hop,
                                           n_mels=n_mels, fmin=fmin,
                                           fmax=fmax, pad_mode="reflect") for row in x]
    return 10 * np.log10(np.maximum(np.stack(mels), 1e-10))


FREQUENCIES = wavelet_frequencies(.5, 60, 64)
WINNERS = {      # name: (straightforward, ours), both of 16 signals of 50 s
    "scalogram (Morlet)": (lambda x: convolved(x.numpy(), FREQUENCIES)[..., 19::39][..., :256],
                           lambda x: magnitudes(x, FREQUENCIES, step=39, first=19)[..., :256]),
    "superlet, 3 to 7 cycles": (
        lambda x: np.exp(np.mean([np.log(np.maximum(convolved(x.numpy(), FREQUENCIES, c), 1e-12))
                                  for c in (3, 4, 5, 6, 7)], 0))
        [..., 19::39][..., :256],
        lambda x: superlets(x, FREQUENCIES, step=39, first=19)[..., :256]),
    "zoomed mel": (
        lambda x: np.concatenate([librosa_mels(x.numpy(), 512, 128, 32, 64, .53, 30),
                                  librosa_mels(x[:, 3600:6400].numpy(), 2048, 32, 8, 64, .53, 30)], -1),
        lambda x: torch.cat([mel_decibels(x), mel_decibels(x[..., 3600:6400], 64, 2048, 32, 8)], -1)),
    "spectra for x3d": (lambda x: librosa_mels(x.numpy(), 512, 200, 50, 96, .5, 20),
                        lambda x: mel_decibels(x, 96, 512, 200, 50, .5, 20)),
}


def alone(f):
    "`f` of one EEG (16, T), as a function of a batch of one."
    return lambda batch: f(batch[0])


def both_clocks(f, batches):
    "(wall, processor) milliseconds per EEG."
    cpu = []
    wall = timed(lambda batch: cpu.append(timed(f, [batch], time.process_time) * len(batch)), batches)
    return wall, sum(cpu) / sum(map(len, batches))


def compare_winners(eeg, times=3):
    """Print ms per EEG of the winners' spectra, straightforward and ours, the ratio of wall time and of
    processor time (the one to judge by where other work runs), and the largest difference away from the ends.
    A plain wavelet of 3 cycles also hears what is slower than any wave; ours has no negative frequencies and
    does not, so superlets differ at the lowest frequencies."""
    for name, (slow, fast) in WINNERS.items():
        x = MONTAGES["interleaved"].derive(eeg)
        with torch.inference_mode():
            got, want = fast(x[0]).numpy(), slow(x[0])
            middle = slice(got.shape[-1] // 4, 3 * got.shape[-1] // 4)
            error = np.abs(got - want)[..., middle].max() / np.abs(want[..., middle]).max()
            plain = np.median([both_clocks(alone(slow), x[:2].split(1)) for _ in range(times)], 0)
            ours = np.median([both_clocks(fast, x[:8].split(8)) for _ in range(times)], 0)
        ratio = plain / ours
        print(f"{name:24} {plain[0]:10.1f} {ours[0]:10.1f} {ratio[0]:7.1f} {ratio[1]:7.1f}   "
              f"largest difference {error:.1e} of the picture", flush=True)


def views_per_second(batch=64, seconds=1.0):
    "Print images per second of every view on the GPU."
    if not torch.cuda.is_available():
        print("views: left out, no GPU here")
        return
    eeg = torch.randn(batch, 20, EEG_SAMPLES, device="cuda").cumsum(-1)
    data = {"eeg": eeg, "spectrogram": torch.rand(batch, 4, SPEC_BINS, SPEC_STEPS, device="cuda").exp()}
    for name, make in VIEWS.items():
        try:
            view = make().cuda().eval()
        except (TypeError, ValueError, HmsError):
            continue                      # a building block that needs arguments
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
    parser.add_argument("--seconds", type=float, default=20,
                        help="time to measure for, all batch sizes together (default 20)")
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
    print(f"\n{'winners, batch 8':24} {'plain ms':>10} {'ours ms':>10} {'ratio':>7} {'by CPU':>7}")
    compare_winners(eeg)
    views_per_second()
    print(" ".join(f"ratio_b{b}={r:.2f}" for b, r in ratios.items()))


if __name__ == "__main__":
    main()
