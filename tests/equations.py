"""Eq. 2, 3, 4, 7 and 8 of the paper in float64 numpy: what the neurons are tested against."""

import numpy as np


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
    if shape == 'triangular':
        return np.where(np.abs(x) < 1 / beta, beta * (1 - beta * np.abs(x)), 0.0)
    if shape == 'rectangular':
        return np.where(np.abs(x) < 1 / (2 * beta), beta, 0.0)
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
