"""Language models, tokenizers and states against the goldens and the library's own files."""

import copy
import pickle
import threading
import time

import numpy as np
import pytest

import mamba_cpp
from models_common import GOLDEN, SHIPPED, golden

MODELS = ["base", "biased", "wide", "falcon", "bytes", "one", "original"]
MODELS += ["mamba2_one", "mamba2_groups", "mamba2_limits", "mamba2_codestral", "mamba2_original"]


@pytest.fixture(scope="module")
def model():
    return mamba_cpp.LanguageModel.load(GOLDEN / "bytes")


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_states_are_the_goldens(name):
    folder, want = golden(name)
    model = mamba_cpp.LanguageModel.load(folder, "f32")
    state = model.make_state(2)
    logits = model.logits(want["input_ids"], state)
    # f32 against float64; the README of the goldens has errors of 1e-7 of the norm, amplified.
    def close(a, b):
        return np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)

    assert logits.dtype == np.float32
    assert close(logits, want["logits"])
    for i, layer in enumerate(state.layers):
        assert layer.conv.size == 0 or close(layer.conv, want["conv_states"][i])
        assert close(layer.ssm, want["ssm_states"][i])


def test_a_state_goes_on_where_it_was(model):
    ids = np.arange(40, 100, dtype=np.int64).reshape(2, 30)
    state = model.make_state(2)
    parts = [model.logits(ids[:, :7], state), model.logits(ids[:, 7:], state)]
    whole = model.logits(ids)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-4)
    last = model.forward(ids, model.make_state(2), "last")
    np.testing.assert_allclose(last, whole[:, -1], atol=1e-4)
    assert model.forward(ids, model.make_state(2), "none") is None


def test_ids_are_any_integers(model):
    want = model.logits([[65, 66, 67]])
    for ids in [[65, 66, 67], (65, 66, 67), np.uint8([65, 66, 67]), np.array([[65, 66, 67]])]:
        np.testing.assert_array_equal(model.logits(ids), want)


def test_steps_go_back(model):
    state = model.make_state(1)
    steps = mamba_cpp.StackSteps()
    model.forward([[1, 2, 3, 4]], state, "none", steps)
    steps.restore(1, state)
    short = model.make_state(1)
    model.logits([[1, 2]], short)
    for one, two in zip(state.layers, short.layers):
        np.testing.assert_allclose(one.ssm, two.ssm, atol=1e-5)
    with pytest.raises(ValueError, match="expected 0 to 3, got 4"):
        steps.restore(4, state)


def test_config(model):
    config = model.config
    assert (config["mixer"], config["vocab_size"], config["n_layer"]) == ("mamba1", 256, 2)
    assert (model.dtype, model.device) == ("f32", "cpu")
    assert len(model.fingerprint()) == 32
    assert mamba_cpp.LanguageModel.load(GOLDEN / "mamba2_one").config["head_dim"] == 16


def test_save_keeps_the_model(model, tmp_path):
    model.save(tmp_path / "copy")
    assert mamba_cpp.LanguageModel.load(tmp_path / "copy").fingerprint() == model.fingerprint()


# ---- states -----------------------------------------------------------------------------------


def read(model, rows):
    state = model.make_state(len(rows))
    model.forward(rows, state, "none")
    return state


def equal(a, b):
    pairs = zip(a.layers, b.layers)
    return all(
        np.array_equal(x.conv, y.conv) and np.array_equal(x.ssm, y.ssm) for x, y in pairs
    )


@pytest.mark.parametrize("name", ["conv", "ssm"])
def test_arrays_share_memory(model, name):
    state = read(model, [[1, 2]])
    getattr(state.layers[1], name)[0, 3] = 3
    kept = [getattr(layer, name) for layer in state.layers]
    assert (kept[1][0, 3] == 3).all()
    want = [array.copy() for array in kept]
    del state  # the arrays keep its memory
    others = [read(model, [[9, 9]]) for _ in range(50)]
    assert all(np.array_equal(a, b) for a, b in zip(kept, want)) and len(others) == 50


def test_arrays_for_torch():
    torch = pytest.importorskip("torch")
    model = mamba_cpp.LanguageModel.load(SHIPPED, "bf16")  # which NumPy has not
    state = model.make_state(2)
    conv = torch.from_dlpack(state.layers[0].conv)
    assert conv.dtype == torch.bfloat16
    conv.fill_(1)
    assert (torch.from_dlpack(state.layers[0].conv) == 1).all()


def test_verbs(model):
    state = read(model, [[1, 2], [3, 4], [5, 6]])
    assert equal(state.gather([2, 0]), read(model, [[5, 6], [1, 2]]))
    assert equal(read(model, [[1, 2]]).repeat(2), read(model, [[1, 2], [1, 2]]))
    parts = [state.gather([0]), state.gather([1, 2])]
    assert equal(mamba_cpp.StackState.concat(parts), state)
    other = state.clone()
    other.reset([0, 1, 0])
    assert not other.layers[0].ssm[1].any() and other.layers[0].ssm[0].any()
    other.scatter(state.gather([1]), [1])
    assert equal(other, state)
    other.reset()
    other.copy_from(state)
    assert equal(other, state)
    half = state.to(dtype="f16")
    assert (half.dtype, half.layers[0].conv.dtype) == ("f16", np.float16)
    for same in [copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))]:
        assert equal(same, state)
        same.reset()
        assert state.layers[0].ssm.any()
    layer = pickle.loads(pickle.dumps(state.layers[1]))
    assert np.array_equal(layer.ssm, state.layers[1].ssm)


def test_state_files(model, tmp_path):
    state = read(model, [[1, 2], [3, 4]])
    extra = np.arange(6, dtype=np.float32).reshape(2, 3)
    known = {
        "fingerprint": model.fingerprint(),
        "tokens_seen": [2, 2],
        "notes": {"who": "a test"},
        "extras": {"mine": extra},
    }
    mamba_cpp.save_state(tmp_path / "state", state, **known)
    saved = mamba_cpp.load_state(tmp_path / "state")
    assert equal(saved.state, state)
    assert np.array_equal(saved.extras["mine"], extra)
    del known["extras"]
    assert {name: getattr(saved, name) for name in known} == known
    assert equal(mamba_cpp.load_state(mamba_cpp.save_state(state)).state, state)
    assert mamba_cpp.load_state(GOLDEN / "files" / "stack.state").state.batch > 0


# ---- tokenizers -------------------------------------------------------------------------------


def test_tokenizer():
    tokenizer = mamba_cpp.Tokenizer.load(GOLDEN / "tokenizer")
    ids = tokenizer.encode("The state, größer")
    assert all(isinstance(one, int) for one in ids) and max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == "The state, größer"
    assert tokenizer.decode_bytes(ids) == "The state, größer".encode()
    tokens = mamba_cpp.Tokenizer.bytes()
    assert tokens.encode("ö") == list("ö".encode()) == tokens.encode("ö".encode())
    assert tokens.decode([0xC3]) == "\ufffd"


# ---- threads ----------------------------------------------------------------------------------


def test_others_run_meanwhile():
    model = mamba_cpp.LanguageModel.load(SHIPPED, "f32")
    ids = [[65] * 30000]  # more than a second on two cores
    turns = []

    def count():
        while not done.is_set():
            turns.append(time.monotonic())
            time.sleep(0.001)

    done = threading.Event()
    thread = threading.Thread(target=count)
    thread.start()
    begin = time.monotonic()
    model.logits(ids)
    end = time.monotonic()
    done.set()
    thread.join()
    inside = [turn for turn in turns if begin + 0.05 < turn < end - 0.05]
    assert end - begin > 0.2 and len(inside) > 10  # none where the GIL is held


def test_threads_share_a_model(model):
    want = model.logits([[1, 2, 3]])
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(model.logits([[1, 2, 3]])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(one, want) for one in results)


# ---- what is wrong ----------------------------------------------------------------------------


def test_errors_say_expected_and_got(model, tmp_path):
    def fails(kind, text, call):
        with pytest.raises(kind, match=text):
            call()

    load = mamba_cpp.LanguageModel.load
    fails(ValueError, "expected config.json, got none", lambda: load(tmp_path))
    fails(ValueError, "expected .*float32.*, got f12", lambda: load(GOLDEN / "bytes", "f12"))
    fails(ValueError, "expected .*cpu.*, got .*tpu", lambda: load(GOLDEN / "bytes", None, "tpu"))
    fails(ValueError, "ids: expected 0 to 255, got 256", lambda: model.logits([[1, 256]]))
    fails(ValueError, "ids: expected 0 to 255, got -1", lambda: model.logits([[-1]]))
    fails(ValueError, "ids: expected whole .*, got ", lambda: model.logits([[1], [2, 3]]))
    fails(ValueError, "ids: expected whole .*, got ", lambda: model.logits(np.float32([[1]])))
    fails(ValueError, "ids: expected whole .*, got 10000", lambda: model.logits([[10**10]]))
    two = model.make_state(2)
    fails(ValueError, r"expected \[3, .*, got \[2, ", lambda: model.logits([[1]] * 3, two))
    fails(ValueError, 'expected "all"', lambda: model.forward([[1]], model.make_state(1), "some"))
    other = load(GOLDEN / "base").make_state(1)
    fails(ValueError, "expected .*, got ", lambda: model.logits([[1]], other))
    fails(ValueError, "mask: expected 2 .*, got 3", lambda: two.reset([1, 0, 1]))
    fails(OSError, "no-such-file", lambda: mamba_cpp.load_state(tmp_path / "no-such-file"))
    fails(ValueError, "expected at least 8 bytes, got 3", lambda: mamba_cpp.load_state(b"abc"))
    fails(TypeError, "unexpected argument note", lambda: mamba_cpp.save_state(other, note=1))
    fails(OSError, "tokenizer.json", lambda: mamba_cpp.Tokenizer.load(tmp_path))
    tokens = mamba_cpp.Tokenizer.bytes()
    fails(ValueError, "text: expected str or bytes, got 3", lambda: tokens.encode(3))
    state = model.make_state(1)
    with pytest.raises(ValueError):
        model.logits([[1, 999]], state)
    assert not state.layers[0].ssm.any()  # errors come before any work
