"""What takes a process of its own: Ctrl-C, memory, what is left when Python ends."""

import signal
import time

import pytest

from models_common import GOLDEN, PROMPT, SHIPPED, python, run_python

BEGIN = """
import sys, time
import mamba_cpp
model = mamba_cpp.LanguageModel.load(sys.argv[1])
generator = mamba_cpp.Generator(model, mamba_cpp.Tokenizer.bytes(), temperature=0.9)
"""

# Each prints "ready" when it is under way, and is interrupted there.
INTERRUPTED = {
    "generate": """
generator.read("And")
call = lambda: generator.generate(10**9, on_token=lambda token: generator_ready())
""",
    "generate, no callback": """
generator.read("And")
import threading
threading.Timer(0.5, lambda: generator_ready()).start()
call = lambda: generator.generate(10**9)
""",
    "stream": """
generator.read("And")
call = lambda: [generator_ready() for piece in generator.stream(10**9)]
""",
    "group": """
pool = mamba_cpp.GeneratorPool(model, 2, mamba_cpp.Tokenizer.bytes())
generator, other = pool.make(), pool.make()
pool.read([generator, other], ["And", "And"])
call = lambda: pool.generate([generator, other], 10**9, on_text=lambda text: generator_ready())
""",
    "read": """
import threading
prompt = "And" * 10**7
threading.Timer(0.5, lambda: generator_ready()).start()
call = lambda: generator.read(prompt)
""",
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_ctrl_c(what):
    process = python(
        BEGIN
        + """
told = False
def generator_ready():
    global told
    if not told:
        told = True
        print("ready")
"""
        + INTERRUPTED[what]
        + """
try:
    call()
except KeyboardInterrupt:
    print("interrupted", generator.tokens_seen)
seen = generator.tokens_seen
generator.generate(5)  # and on
print("went on", generator.tokens_seen - seen)
""",
        SHIPPED,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    line = process.stdout.readline()
    took = time.monotonic() - begin
    out, errors = process.stdout.read(), process.stderr.read()
    assert line.startswith("interrupted") and int(line.split()[1]) > 3, (line, errors)
    assert took < 5  # a token takes a millisecond, a piece of a prompt a fifth of a second
    assert out == "went on 5\n" and "leaked" not in errors
    assert process.wait(60) == 0


def test_nothing_is_left_at_the_end():
    """nanobind tells at the end of a process which objects are left."""
    out = run_python(
        BEGIN
        + """
import gc
generator.read("And the king")
pool = mamba_cpp.GeneratorPool(model, 2, mamba_cpp.Tokenizer.bytes())
member = pool.make()
pool.read([member], ["And"])
def fail(text):
    raise LookupError
results = pool.generate([member], 3, on_text=fail)
stream = generator.stream(10)
next(stream)
try:
    generator.generate(5, on_token=lambda token: fail("") if generator else None)
except LookupError as error:
    kept = error
kept_arrays = [layer.ssm for layer in generator.state().layers]
snapshot = generator.snapshot()
forks = generator.fork(2)
cache = mamba_cpp.StateCache(model)
cache.read(mamba_cpp.Generator(model), [1, 2, 3])
speculation = mamba_cpp.Speculation(generator.fork(), mamba_cpp.Generator.restore(snapshot, model))
steps = mamba_cpp.StackSteps()
saved = mamba_cpp.load_state(mamba_cpp.save_state(generator.state()))
print("done")
""",
        SHIPPED,
    )
    assert out == "done\n"


def test_what_a_generator_needs_lives():
    out = run_python(
        """
import gc, sys
import mamba_cpp
def made():
    model = mamba_cpp.LanguageModel.load(sys.argv[1])
    generator = mamba_cpp.Generator(model, mamba_cpp.Tokenizer.bytes())
    generator.read("And the king")
    member = mamba_cpp.GeneratorPool(mamba_cpp.LanguageModel.load(sys.argv[1]), 2).make()
    member.read([1])
    return generator.stream(20), generator.fork(), member, generator.state().layers[0].ssm
def again():
    gc.collect()
    return mamba_cpp.LanguageModel.load(sys.argv[1], "f16")  # other bytes of the same sizes
stream, fork, member, array = made()
want = fork.fork().generate(20).text
del stream
others = [again()]
assert fork.generate(20).text == want
stream = made()[0]
others.append(again())
assert "".join(stream) == want
del fork, stream
others.append(again())
member.generate(3)
array[:] = 1
assert member.model.config["vocab_size"] == 256
""",
        SHIPPED,
    )
    assert out == ""


def test_memory_does_not_grow():
    out = run_python(
        BEGIN
        + """
import resource
def work():
    generator = mamba_cpp.Generator(model, mamba_cpp.Tokenizer.bytes())
    generator.read([65, 66])
    "".join(generator.stream(3))
    for fork in generator.fork(2):
        fork.generate(2, on_text=lambda text: True, log_probs=2)
    mamba_cpp.Generator.restore(generator.snapshot(), model)
    state = generator.state().repeat(3)
    model.logits([[1], [2], [3]], state)
    mamba_cpp.load_state(mamba_cpp.save_state(state))
    sum(layer.ssm.sum() for layer in state.layers)
    try:
        generator.read([999])
    except ValueError:
        pass
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
for _ in range(50):
    work()
before = resident()
for _ in range(300):
    work()
print(resident() - before)
""",
        GOLDEN / "bytes",
    )
    # A state of the model has 25 KB; one that stays at each turn would be 7 MB.
    assert int(out) < 2e6


def test_a_thread_is_left_at_the_end():
    """Python does not wait for a daemon thread; it ends well all the same."""
    process = python(
        BEGIN
        + """
import threading
generator.read("And")
texts = generator.fork(3)
calls = [
    lambda: texts[0].generate(10**9),
    lambda: list(texts[1].stream(10**9)),
    lambda: texts[2].generate(10**9, on_text=lambda text: time.sleep(0.01)),
    lambda: [mamba_cpp.Generator(model).read([65] * 10**6) for _ in range(10**9)],
]
for call in calls:
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.5)
print("done")
""",
        SHIPPED,
    )
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done\n"), errors  # what the threads hold is left
