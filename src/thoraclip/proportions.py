"""The interval of a share: of images that were counted, or of images of patients who share more than chance."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["LEVEL", "patient_share", "share_interval", "t_quantile", "wilson"]

LEVEL = 0.95
"""Nominal coverage of every interval."""
_Z95 = 1.959963984540054
"""97.5 % point of the standard normal distribution."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209); `trials` >= 1."""
    share, z2 = successes / trials, _Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low, high = min(share, centre - half), max(share, centre + half)  # rounding must not leave the share out
    return max(0.0, low), min(1.0, high)


def t_quantile(df: float, level: float = LEVEL) -> float:
    """(1 + level) / 2 point, by default 97.5 %, of Student's t distribution with `df` > 0 degrees of freedom, which may
    be infinite."""
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]  # 0.2 s

    return float(stdtrit(df, (1 + level) / 2) if math.isfinite(df) else ndtri((1 + level) / 2))


def share_interval(
    share: float, variance: float, *, clusters: float, df: float, level: float = LEVEL
) -> tuple[float, float]:
    """Interval, by default of 95 %, of a share whose variance was estimated: Wilson's, with an effective n and
    Student's t.

    The n at which a binomial share has this variance is p (1 - p) / V (Kish 1965, "Survey Sampling", 8.2; Korn &
    Graubard 1998, Survey Methodology 24:193). Near 0 and 1 V says little, and the number of clusters more; so
    1/n = (e^2 V / (p (1 - p)) + 1 / G) / (1 + e^2), where e = G p (1 - p) is about how many clusters err: n is G for a
    perfect share, whose lower bound, G / (G + t^2), no other share exceeds (and 0 likewise). Wilson 1927, J. Am. Stat.
    Assoc. 22:209.

    Args:
        share: p in [0, 1].
        variance: V of its estimate, 0 or more.
        clusters: G, how many independent patients (or images) are behind it, more than 0.
        df: degrees of freedom of V, more than 0; may be infinite.
        level: nominal coverage, between 0 and 1.

    Returns:
        low, high in [0, 1], with the share between them.
    """
    wrong = clusters * share * (1 - share)
    n = (1 + wrong**2) / (clusters * wrong * variance + 1 / clusters)
    t2 = t_quantile(df, level) ** 2
    centre = (share + t2 / (2 * n)) / (1 + t2 / n)
    half = math.sqrt(t2 * share * (1 - share) / n + (t2 / (2 * n)) ** 2) / (1 + t2 / n)
    low, high = min(share, centre - half, clusters / (clusters + t2)), max(share, centre + half, t2 / (clusters + t2))
    return max(0.0, low), min(1.0, high)


def patient_share(
    right: npt.NDArray[np.bool_], patients: npt.NDArray[np.int64], level: float = LEVEL
) -> tuple[float, float]:
    """Interval, by default of 95 %, of the share of images for which something holds, where images of one patient
    go together.

    `share_interval` with the ratio estimator's variance, V = G / (G - 1) sum_g (sum_i in g (y_i - p))^2 / N^2 (Cochran
    1977, "Sampling Techniques", 9A.3), and G - 1 degrees of freedom. One patient tells nothing: (0, 1).

    Args:
        right: bool[N], N >= 1.
        patients: i64[N], whose image it is; any numbers.
        level: nominal coverage, between 0 and 1.
    """
    _, member = np.unique(patients, return_inverse=True)
    share, count = float(right.mean()), int(member.max()) + 1
    if count < 2:
        return 0.0, 1.0
    excess = np.bincount(member, weights=right - share)
    variance = float((excess**2).sum()) / len(right) ** 2 * count / (count - 1)
    return share_interval(share, variance, clusters=count, df=count - 1, level=level)
