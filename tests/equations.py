"""Eq. 2, 3, 4, 7 and 8 of the paper in float64 numpy: what the neurons are tested against."""

import itertools

import numpy as np
from scipy import integrate


def eq_2(currents, tau, v_th):
    """Potentials before the reset and spikes, [T, ...]."""
    u = s = np.zeros(currents.shape[1:])
    potentials, spikes = [], []
    for current in np.asarray(currents, np.float64):
        u = tau * u * (1 - s) + current
        s = np.float64(u >= v_th)
        potentials.append(u)
        spikes.append(s)
    return np.stack(potentials), np.stack(spikes)


def eq_3_and_4(x, beta, shape):
    """The surrogate gradient at distance x from the threshold."""
    x, beta = np.asarray(x, np.float64), np.asarray(beta, np.float64)
    if shape == 'triangular':
        return np.where(np.abs(x) < 1 / beta, beta * (1 - beta * np.abs(x)), 0.0)
    if shape == 'rectangular':
        return np.where(np.abs(x) < 1 / (2 * beta), beta, 0.0)
    if shape == 'dspike':  # of Li et al., NeurIPS 2021
        sech = 1 / np.cosh(np.minimum(beta * np.abs(x), 300))
        return np.where(np.abs(x) <= 0.5, beta / (2 * np.tanh(beta / 2)) * sech**2, 0.0)
    return beta / (1 + (np.pi * beta * x) ** 2)


def eq_7_and_8(upstream, u, s, beta, tau, v_th, shape, detach_reset=False, scale=1.0):
    """Gradients of sum(upstream * s) by the currents, tau and v_th, given the potentials and spikes of `eq_2`.

    `scale` is a factor of the surrogate gradient.

    du[t]/dc[t] = 1, du[t]/dtau = u[t-1] (1 - s[t-1]) and ds[t]/dv_th = -f(u[t] - v_th).
    """
    d_u, d_tau, d_v_th, later = np.zeros_like(u), 0.0, 0.0, 0.0
    for t in reversed(range(len(u))):
        d_s = upstream[t] + (0 if detach_reset else later * (-tau * u[t]))  # Eq. 8
        through_spike = d_s * scale * eq_3_and_4(u[t] - v_th, beta, shape)
        d_u[t] = through_spike + later * tau * (1 - s[t])  # Eq. 7
        d_v_th -= through_spike.sum()
        d_tau += (d_u[t] * u[t - 1] * (1 - s[t - 1])).sum() if t > 0 else 0
        later = d_u[t]
    return d_u, d_tau, d_v_th


def expectations(f, mean, variance, v_th, points):
    """E of f, f^2, u f, (1 - s) f, (1 - s) u f, u f^2 and (u f)^2 over Gaussian potentials; `f` of u - v_th.

    By SciPy's adaptive quadrature, between points that it is to look at: where f has a kink or a peak.
    """
    sigma = np.sqrt(variance)

    def products(u):
        value, below = f(u - v_th), float(u < v_th)
        all_of_them = [value, value**2, u * value, below * value, below * u * value, u * value**2, (u * value) ** 2]
        return np.array(all_of_them) * np.exp(-0.5 * ((u - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))

    low, high = mean - 12 * sigma, mean + 12 * sigma
    ends = sorted({low, high, *np.clip([v_th, mean, *points, *(mean + sigma * np.array([-6, -3, 3, 6]))], low, high)})
    return sum(integrate.quad_vec(products, *piece, epsabs=1e-14, epsrel=1e-9)[0] for piece in itertools.pairwise(ends))
