"""Generators: the same texts as the program's, callbacks, forks, pools, caches, drafts."""

import gc
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import mamba_cpp
from models_common import GOLDEN, PROMPT, ROOT, SHIPPED, program

LIVELY = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "seed": 3,
}


@pytest.fixture(scope="module")
def model():
    return mamba_cpp.LanguageModel.load(SHIPPED)


@pytest.fixture(scope="module")
def tokenizer():
    return mamba_cpp.Tokenizer.bytes()


@pytest.fixture
def make(model, tokenizer):
    def make(prompt=PROMPT, **options):
        generator = mamba_cpp.Generator(model, tokenizer, **options)
        if prompt:
            generator.read(prompt)
        return generator

    return make


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, LIVELY])
def test_texts_are_those_of_the_program(make, options):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    want = program("mamba-lm", "generate", SHIPPED, "--prompt", PROMPT, "-n", "200", *flags)
    generated = make(**options).generate(200)
    assert generated.text.encode() == want
    assert bytes(generated.tokens) == want
    assert "".join(make(**options).stream(200)).encode() == want
    one = make(**options)
    assert [one.next() for _ in range(200)] == list(want)


def test_a_text_goes_from_one_to_the_other(make, model, tokenizer, tmp_path):
    """States that Python saves are gone on with by the program, and back."""
    whole = make(**LIVELY).generate(120).text
    mine = make(**LIVELY)
    pieces = [mine.generate(40).text]
    mine.save(tmp_path / "mine")
    resume = ["mamba-lm", "generate", SHIPPED, "--as", "text", "-n", "40"]
    theirs = tmp_path / "theirs"
    pieces.append(program(*resume, "--resume", tmp_path / "mine", "--save-state", theirs).decode())
    last = mamba_cpp.Generator.restore(theirs, model, tokenizer)
    pieces.append(last.generate(40).text)
    assert "".join(pieces) == whole
    assert last.options == make(prompt=None, **LIVELY).options


def test_what_a_text_is_read_and_written_with(make, model, tokenizer):
    generator = make(prompt=None)
    assert generator.read(PROMPT) == len(PROMPT) == generator.tokens_seen
    other = make(prompt=None)
    other.read(np.frombuffer(PROMPT.encode(), np.uint8))
    assert generator.generate(30) == other.generate(30)
    ids = mamba_cpp.Generator(model)  # without a tokenizer
    ids.read(list(PROMPT.encode()))
    assert list(ids.stream(5)) == list(make().generate(5).tokens)
    assert ids.generate(5).text is None
    long = make(prompt=PROMPT * 100)  # of several pieces
    assert long.tokens_seen == 100 * len(PROMPT)


def test_a_text_ends(make):
    text = make().generate(200).text
    stop = text[50:54]
    ended = make().generate(200, stop=[stop])
    assert ended.reason == "stop_string"
    assert ended.text == text[: text.index(stop) + len(stop)]
    assert make().generate(200, stop=stop) == ended
    stream = make().stream(200, stop=stop)
    assert stream.reason is None
    assert "".join(stream) == ended.text
    assert stream.reason == "stop_string"
    assert next(stream, None) is None
    assert make().generate(7).reason == "max_tokens"
    stream = make().stream(0)
    assert list(stream) == [] and stream.reason == "max_tokens"


def test_callbacks(make):
    seen = []
    ended = make().generate(50, on_token=lambda token: seen.append(token) or len(seen) < 7)
    assert ended.reason == "callback" and ended.tokens == seen and len(seen) == 7
    pieces = []
    assert make().generate(50, on_text=pieces.append).text == "".join(pieces)

    generator = make()
    left = iter(range(9))

    def break_off(text):
        if next(left, None) is None:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        generator.generate(50, on_text=break_off)
    assert generator.tokens_seen == len(PROMPT) + 10  # the tokens so far are part of the text
    assert make().generate(30).tokens[10:] == generator.generate(20).tokens


def test_a_callback_cannot_call_its_own_generator(make):
    generator = make()
    with pytest.raises(RuntimeError, match="expected one that is at rest"):
        generator.generate(5, on_token=lambda token: generator.next())
    generator.generate(5)  # and it goes on


def test_a_callback_cannot_call_another_of_its_pool(model, tokenizer):
    pool = mamba_cpp.GeneratorPool(model, 2, tokenizer)
    one, other = pool.make(), pool.make()
    for generator in (one, other):
        generator.read("a")
    for call in (other.next, other.state, lambda: pool.next([other])):
        with pytest.raises(RuntimeError, match="expected one that is at rest"):
            one.generate(5, on_token=lambda token: call())


def test_half_a_character_is_kept(model, tokenizer):
    generator = mamba_cpp.Generator(model, tokenizer, allowed=[0xC3])
    generator.read("a")
    assert generator.generate(2).text == "\ufffd"  # the first of the two can become nothing
    assert generator.finish_text() == "\ufffd"
    assert generator.finish_text() == ""


def test_log_probs(make):
    generated = make().generate(5, log_probs=3)
    assert len(generated.log_probs) == 5
    for token, odds in zip(generated.tokens, generated.log_probs):
        assert odds.top[0] == (token, odds.chosen)  # greedy
        assert [p for _, p in odds.top] == sorted((p for _, p in odds.top), reverse=True)
    generator = make()
    logits = generator.logits()[0].astype(np.float64)
    token = generator.next()
    want = logits[token] - np.log(np.exp(logits).sum())
    assert generator.log_probs(2).chosen == pytest.approx(want, abs=1e-5)
    assert make().generate(5).log_probs is None


def test_options(make):
    generator = make(**LIVELY, logit_bias={65: -100.5}, allowed=range(32, 127))
    assert generator.options == {
        **LIVELY,
        "logit_bias": {65: -100.5},
        "allowed": list(range(32, 127)),
    }
    assert all(32 <= token < 127 and token != 65 for token in generator.generate(50).tokens)
    generator.set_options(top_k=1)
    assert generator.options["seed"] == 3 and generator.options["top_k"] == 1
    again = make(**generator.options)
    assert again.options == generator.options


# ---- forks and snapshots ----------------------------------------------------------------------


def test_forks(make):
    generator = make(**LIVELY)
    generator.generate(20)
    fork = generator.fork()
    several = generator.fork(3)
    del generator
    gc.collect()
    texts = [one.generate(40).text for one in [fork, *several]]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    fork.reseed(5)
    several[0].reseed(5)
    assert fork.generate(20) == several[0].generate(20)


def test_snapshots(make, model, tokenizer, tmp_path):
    generator = make(**LIVELY)
    generator.generate(10)
    snapshot = generator.snapshot()
    want = generator.generate(30)
    snapshot.save(tmp_path / "state")
    load = mamba_cpp.GeneratorSnapshot.load
    same = [snapshot, snapshot.clone(), load(snapshot.save()), load(tmp_path / "state")]
    same.append(pickle.loads(pickle.dumps(snapshot)))
    for one in same:
        assert mamba_cpp.Generator.restore(one, model, tokenizer).generate(30) == want
        assert (one.tokens_seen, one.options) == (len(PROMPT) + 10, generator.options)
        assert one.fingerprint == model.fingerprint()
    generator.copy_from(snapshot)
    assert generator.generate(30) == want
    assert snapshot.logits.shape == (1, 256) and snapshot.state.batch == 1
    other = mamba_cpp.LanguageModel.load(GOLDEN / "bytes")
    with pytest.raises(ValueError, match="expected .*, got "):
        mamba_cpp.Generator.restore(snapshot, other)
    with pytest.raises(ValueError, match="expected .*, got "):
        mamba_cpp.Generator.restore(tmp_path / "state", other)


def test_state_and_logits(make, model):
    generator = make()
    want = model.make_state(1)
    logits = model.forward([list(PROMPT.encode())], want, "last")
    np.testing.assert_allclose(generator.logits(), logits, atol=0.2)  # bf16
    state = generator.state()
    assert np.allclose(state.layers[3].ssm, want.layers[3].ssm, atol=0.05)
    other = make(prompt=None)
    other.continue_from(list(PROMPT.encode()), state, generator.logits())
    assert other.generate(20) == generator.generate(20)


# ---- pools ------------------------------------------------------------------------------------


def test_rows_of_a_pool_are_single_ones(model, tokenizer):
    """In f32, where products of several rows do not change a greedy text."""
    model = mamba_cpp.LanguageModel.load(SHIPPED, "f32")
    prompts = [PROMPT, "In the beginning", list(b"Blessed")]
    want = []
    for i, prompt in enumerate(prompts):
        single = mamba_cpp.Generator(model, tokenizer, temperature=0.8, seed=i)
        single.read(prompt)
        want.append(single.generate(40))
    pool = mamba_cpp.GeneratorPool(model, 4, tokenizer)
    group = [pool.make(temperature=0.8, seed=i) for i in range(3)]
    assert (pool.capacity, pool.size) == (4, 3)
    pool.read(group, prompts)
    first = pool.next(group)
    assert first == [one.tokens[0] for one in want]
    rest = pool.generate(group, 39)
    assert [[token, *one.tokens] for token, one in zip(first, rest)] == [one.tokens for one in want]
    del group[1]
    gc.collect()
    assert pool.size == 2
    restored = pool.restore(group[0].snapshot())
    assert restored.generate(10) == group[0].generate(10)


def test_members_have_options_of_their_own(model, tokenizer):
    pool = mamba_cpp.GeneratorPool(model, 3, tokenizer)
    group = [pool.make() for _ in range(3)]
    pool.read(group, [PROMPT] * 3)

    def fail(text):
        raise LookupError("mine alone")

    each = [{"max_tokens": 5}, {"on_text": fail}, {}]
    short, failed, long = pool.generate(group, 20, each)
    assert len(short.tokens) == 5 and len(long.tokens) == 20
    assert failed.reason == "error" and isinstance(failed.error, LookupError)
    assert short.error is None


def test_a_pool_is_full(model):
    pool = mamba_cpp.GeneratorPool(model, 1)
    member = pool.make()
    with pytest.raises(ValueError, match="expected room for another sequence, got 1, all in use"):
        pool.make()
    with pytest.raises(ValueError, match="prompts: expected 1, one for each member, got 2"):
        pool.read([member], [[1], [2]])
    with pytest.raises(ValueError, match="generators of one pool"):
        pool.next([member, mamba_cpp.GeneratorPool(model, 1).make()])
    with pytest.raises(ValueError, match="group"):
        pool.next([member, member])


# ---- threads ----------------------------------------------------------------------------------


def test_threads_take_turns(make):
    generator = make()
    threads = [threading.Thread(target=generator.generate, args=(20,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generator.tokens_seen == len(PROMPT) + 80


# ---- known beginnings, drafts -----------------------------------------------------------------


def test_cache(make, model, tmp_path):
    files = {"folder": tmp_path / "known", "disk_bytes": 1 << 30}
    cache = mamba_cpp.StateCache(model, **files, keep_every=16)
    first, second = make(prompt=None), make(prompt=None)
    assert cache.read(first, PROMPT * 4) == 0
    assert cache.read(second, PROMPT * 4) == 4 * len(PROMPT)
    assert first.generate(20) == second.generate(20)
    third = make(prompt=None)
    found = cache.find(third, PROMPT * 2)
    assert found == 32
    assert cache.counts()["hits"] == 2
    cache.flush()
    again = mamba_cpp.StateCache(model, **files)
    assert again.read(make(prompt=None), PROMPT * 4) == 4 * len(PROMPT)


def test_a_cache_warns_of_files(make, model, tmp_path):
    cache = mamba_cpp.StateCache(
        model, folder=tmp_path / "known", disk_bytes=1 << 30, host_bytes=0, keep_every=16
    )
    cache.read(make(prompt=None), PROMPT * 4)
    cache.flush()
    for file in (tmp_path / "known").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.warns(RuntimeWarning):
        cache.read(make(prompt=None), PROMPT * 4)


def test_speculation(make):
    small = mamba_cpp.LanguageModel.load(GOLDEN / "bytes")
    target, want = make(), make().generate(60)
    draft = mamba_cpp.Generator(small)
    draft.read(list(PROMPT.encode()))
    speculation = mamba_cpp.Speculation(target, draft, 3)
    del target, draft  # it keeps them
    gc.collect()
    assert speculation.generate(60) == want
    counts = speculation.counts()
    assert counts["runs"] > 0 and counts["accepted"] <= counts["proposed"]
    with pytest.raises(ValueError, match="expected .*, got "):
        mamba_cpp.Speculation(make(), mamba_cpp.Generator(small))


# ---- what is wrong ----------------------------------------------------------------------------


def test_errors_say_expected_and_got(make, model, tokenizer):
    def fails(kind, text, call):
        with pytest.raises(kind, match=text):
            call()

    generator = make()
    fails(ValueError, "ids: expected 0 to 255, got 300", lambda: generator.read([65, 300]))
    fails(ValueError, "prompt: expected a list .*, got 3.5", lambda: generator.read(3.5))
    fails(ValueError, "tokenizer: expected one", lambda: mamba_cpp.Generator(model).read("text"))
    fails(ValueError, "stop: expected text .*, got 3", lambda: generator.generate(stop=3))
    fails(ValueError, "on_text: expected a function, got 3", lambda: generator.generate(on_text=3))
    fails(TypeError, "unexpected argument max_token", lambda: generator.generate(max_token=3))
    fails(TypeError, "unexpected argument on_text", lambda: generator.stream(on_text=print))
    fails(ValueError, "max_tokens: expected 0 to .*, got -1", lambda: generator.generate(-1))
    fails(ValueError, "max_tokens: expected 0 to .*, got -1", lambda: generator.stream(-1))
    fails(ValueError, "seed: expected .*, got -1", lambda: make(seed=-1))
    fails(ValueError, "temperature: expected .*, got -1", lambda: make(temperature=-1))
    fails(ValueError, "temperature: expected a number, got 'x'", lambda: make(temperature="x"))
    fails(TypeError, "unexpected argument temprature", lambda: make(temprature=1))
    fails(ValueError, "allowed: expected 0 to 255, got 256", lambda: make(allowed=[256]))
    fails(ValueError, "expected .*, got ", lambda: make(prompt=None).next())
    fails(OSError, "no-such-file", lambda: mamba_cpp.Generator.restore("/no-such-file", model))
    assert generator.tokens_seen == len(PROMPT)


def test_the_example(make, tmp_path):
    script = ROOT / "python" / "examples" / "talk.py"

    def run(*arguments):
        command = [sys.executable, script, *arguments]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
        return done.stdout.decode()

    text = run("begin", SHIPPED, PROMPT, "30")
    text += run("go_on", SHIPPED, "30") + run("go_on", SHIPPED, "9")
    assert text == PROMPT + make(temperature=0.7, seed=1).generate(69).text
