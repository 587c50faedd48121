"""The benchmark's attempt at a small size: RSA, certificates, encryption and noise, all real."""

from __future__ import annotations

import argparse

from tools.bench.secagg import measure


def test_an_attempt_with_dropouts_is_exact_and_noised() -> None:
    options = argparse.Namespace(clients=6, params=5000, dropout=0.2, rounds=1, json=True)
    result = measure(options)
    assert result.sum_is_exact
    assert (result.dropouts, result.neighbours, result.threshold) == (1, 5, 4)
    assert 0.8 < result.noise_variance_over_target < 1.2
    assert set(result.server_steps_cpu_s) == set(result.server_steps_wall_s)
    assert result.client_mask_cpu_s < result.client_cpu_s
    # Small vectors show what is not the vector: statements, sealed shares, released shares.
    assert result.bytes_up_per_client < 3 * 5000 + 6000
