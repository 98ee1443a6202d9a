"""The operations on NumPy arrays; runs without PyTorch."""

import os
import subprocess
import sys

import numpy as np
import pytest

import mamba_cpp


def softplus(v):
    return np.logaddexp(v, 0)


def silu(v):
    return v / (1 + np.exp(-v))


def plain_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, initial_state=None, reset=None):
    u, delta, A, B, C = (v.astype(np.float64) for v in (u, delta, A, B, C))
    batch, time, channels = u.shape
    h = np.zeros((batch, channels, A.shape[1])) if initial_state is None else initial_state.astype(np.float64)
    d = softplus(delta + (0 if delta_bias is None else delta_bias))
    y = np.zeros_like(u)
    for t in range(time):
        if reset is not None:
            h[reset[:, t] != 0] = 0
        step = d[:, t, :, None]
        h = np.exp(step * A) * h + step * B[:, t, None] * u[:, t, :, None]
        y[:, t] = (h * C[:, t, None]).sum(2) + (0 if D is None else D * u[:, t])
    return (y if z is None else y * silu(z.astype(np.float64))), h


def scan_operands(batch=2, time=29, channels=12, d_state=8, dtype=np.float32):
    random = np.random.default_rng(3)

    def new(*shape, of=np.float32):
        return random.standard_normal(shape).astype(of)

    return {
        "u": new(batch, time, channels, of=dtype),
        "delta": new(batch, time, channels, of=dtype),
        "A": -np.exp(new(channels, d_state)),
        "B": new(batch, time, d_state, of=dtype),
        "C": new(batch, time, d_state, of=dtype),
        "D": new(channels),
        "z": new(batch, time, channels, of=dtype),
        "delta_bias": new(channels) - 2,
        "initial_state": new(batch, channels, d_state),
    }


def close(got, expected, bound):
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("dtype, bound", [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_selective_scan(dtype, bound):
    given = scan_operands(dtype=dtype)
    reset = np.zeros((2, 29), np.int32)
    reset[0, 7] = reset[1, 0] = 1
    y, state = mamba_cpp.selective_scan(**given, reset=reset, return_final_state=True)
    y_plain, state_plain = plain_scan(**given, reset=reset)
    assert y.dtype == dtype and state.dtype == np.float32
    close(y, y_plain, bound)
    close(state, state_plain, bound)


def test_selective_scan_in_pieces_has_the_bits_of_the_whole():
    given = scan_operands()
    y, state = mamba_cpp.selective_scan(**given, return_final_state=True)
    pieces, at = [], given["initial_state"]
    for part in (slice(0, 10), slice(10, 11), slice(11, None)):
        cut = {k: v[:, part] if v.ndim == 3 and k != "initial_state" else v for k, v in given.items()}
        cut["initial_state"] = at
        piece, at = mamba_cpp.selective_scan(**cut, return_final_state=True)
        pieces.append(piece)
    assert np.array_equal(np.concatenate(pieces, 1), y) and np.array_equal(at, state)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_do_not_change_a_bit(threads):
    given = scan_operands(batch=4, channels=96)
    assert np.array_equal(
        mamba_cpp.selective_scan(**given, threads=threads), mamba_cpp.selective_scan(**given, threads=1)
    )


@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d(activation):
    random = np.random.default_rng(4)
    x = random.standard_normal((2, 15, 12)).astype(np.float32)
    weight = random.standard_normal((12, 4)).astype(np.float32)
    bias = random.standard_normal(12).astype(np.float32)
    before = random.standard_normal((2, 12, 3)).astype(np.float32)
    y, after = mamba_cpp.causal_conv1d(
        x, weight, bias, before, activation=activation, return_final_state=True
    )
    all_x = np.concatenate([before, x.transpose(0, 2, 1)], 2).astype(np.float64)
    expected = sum(weight[:, k] * all_x[:, :, k : k + 15].transpose(0, 2, 1) for k in range(4)) + bias
    close(y, silu(expected) if activation else expected, 1e-5)
    assert np.array_equal(after, all_x[:, :, -3:].astype(np.float32))


def test_ssd_of_one_channel_a_head_is_a_scan():
    given = scan_operands(channels=6)
    A = given["A"][:, 0].copy()
    scan = mamba_cpp.selective_scan(
        given["u"], given["delta"], np.repeat(A[:, None], 8, 1), given["B"], given["C"], given["D"],
        None, given["delta_bias"], initial_state=given["initial_state"], return_final_state=True,
    )
    ssd = mamba_cpp.ssd(
        given["u"][..., None], given["delta"], A, given["B"][:, :, None], given["C"][:, :, None],
        given["D"], given["delta_bias"], initial_state=given["initial_state"][:, :, None],
        return_final_state=True,
    )
    close(ssd[0][..., 0], scan[0], 1e-5)
    close(ssd[1][:, :, 0], scan[1], 1e-5)


def test_strides_are_read_in_place():
    given = scan_operands()
    expected = mamba_cpp.selective_scan(**given)
    projection = np.concatenate([given["u"], given["delta"], given["z"]], 2)
    u, delta, z = np.split(projection, 3, axis=2)
    time_first = np.ascontiguousarray(given["B"].transpose(1, 0, 2)).transpose(1, 0, 2)
    strided = dict(given, u=u, delta=delta, z=z, B=time_first)
    assert np.array_equal(mamba_cpp.selective_scan(**strided), expected)


def test_read_only_arrays_are_read():
    given = scan_operands()
    expected = mamba_cpp.selective_scan(**given)
    for value in given.values():
        value.flags.writeable = False
    assert np.array_equal(mamba_cpp.selective_scan(**given), expected)


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("u", lambda v: v[0], r"u: expected \[batch, time, channels\], got \[29, 12\]"),
        ("delta", lambda v: v.astype(np.float64), "delta: expected f32, bf16, f16 or i32, got float64"),
        ("B", lambda v: np.asfortranarray(v), "B: expected contiguous channels"),
        ("B", lambda v: v[::-1], "B: expected strides of at least 0"),
        ("C", lambda v: v[:, 1:], r"C: expected \[2, 29, 8\], got \[2, 28, 8\]"),
        ("A", lambda v: v.astype(np.complex64), "A: expected f32, bf16, f16 or i32, got complex64"),
        ("z", lambda v: v.astype(np.float16), "z: expected f32, got f16"),
        ("B", lambda v: "B", "B: expected an array"),
    ],
)
def test_a_wrong_operand(key, change, message):
    given = scan_operands()
    given[key] = change(given[key])
    with pytest.raises(ValueError, match=message):
        mamba_cpp.selective_scan(**given)


def test_without_torch():
    """A process where PyTorch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, mamba_cpp\n"
        "x = np.ones((1, 3, 2), np.float32)\n"
        "print(mamba_cpp.causal_conv1d(x, np.ones((2, 2), np.float32))[0, :, 0].tolist())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert run.stdout.strip() == "[1.0, 2.0, 2.0]", run.stderr
