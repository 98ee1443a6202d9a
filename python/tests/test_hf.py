"""transformers' generate() over this library, against transformers' own and the Generator."""

import copy
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.24")

import mamba_cpp  # noqa: E402
from mamba_cpp.hf import GenerationState, MambaCache, MambaForCausalLM  # noqa: E402
from models_common import GOLDEN, PROMPT, SHIPPED, golden, run_python  # noqa: E402

MODELS = ["base", "biased", "wide", "falcon", "bytes", "one", "sharded_bf16", "original"]
MODELS += ["mamba2_one", "mamba2_groups", "mamba2_h80", "mamba2_limits", "mamba2_codestral"]

IDS = torch.tensor([list(b"The state")])
SHORT = {"max_new_tokens": 30, "pad_token_id": 0}


@pytest.fixture(scope="module")
def ours():
    return MambaForCausalLM.from_pretrained(GOLDEN / "bytes")


@pytest.fixture(scope="module")
def theirs():
    return transformers.MambaForCausalLM.from_pretrained(GOLDEN / "bytes")


@pytest.fixture(scope="module")
def shipped():
    """In f32, where no run of several tokens changes a greedy text."""
    return MambaForCausalLM.from_pretrained(SHIPPED, "f32")


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_the_goldens_and_the_generators(name):
    folder, want = golden(name)
    model = MambaForCausalLM.from_pretrained(folder)
    prompt = torch.from_numpy(want["prompt_ids"])
    ids = model.generate(prompt, max_new_tokens=24, do_sample=False)
    assert np.array_equal(ids[:, prompt.shape[1] :], want["greedy_ids"])
    generator = mamba_cpp.Generator(model.language_model)
    generator.read(want["prompt_ids"][0])
    assert generator.generate(24).tokens == want["greedy_ids"][0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "top_k": 20, "temperature": 1.3},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True},
        {"use_cache": False},
    ],
    ids=str,
)
def test_generate_is_theirs(ours, theirs, options):
    texts = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        texts.append(model.generate(IDS, **{"do_sample": False, **SHORT, **options}))
    assert torch.equal(*texts)


def test_prompts_in_pieces(ours):
    want = ours.generate(IDS, **SHORT)
    assert torch.equal(ours.generate(IDS, **SHORT, prefill_chunk_size=4), want)
    text, state = ours.generate(IDS, **SHORT, prefill_chunk_size=4, return_state=True)
    assert torch.equal(text, want)
    after = ours.generate(state=state, **SHORT, prefill_chunk_size=4)
    assert torch.equal(after, ours.generate(state=state, **SHORT))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
def test_padding_is_left_out(ours, theirs, options):
    ids = torch.tensor([[0] * 4 + list(b"The s"), list(b"The state")])
    options = {**SHORT, **options, "attention_mask": (ids != 0).long()}
    text = ours.generate(ids, **options)
    assert torch.equal(text, theirs.generate(ids, **options))
    alone = ours.generate(ids[:1, 4:], **SHORT, num_beams=options.get("num_beams", 1))
    assert torch.equal(text[:1, 4:], alone)


def test_forward_is_theirs(ours, theirs):
    ids = torch.tensor([list(b"The state"), list(b"of things")])
    mine, other = ours(ids, labels=ids), theirs(ids, labels=ids)
    torch.testing.assert_close(mine.logits, other.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.loss, other.loss.detach())
    assert ours(ids, logits_to_keep=100).logits.shape == (2, 9, 256)
    assert ours(ids, logits_to_keep=2).logits.shape == (2, 2, 256)
    assert torch.equal(ours(ids, logits_to_keep=torch.tensor([3])).logits, mine.logits[:, 3:4])
    logits, cache = ours(ids, return_dict=False)
    assert torch.equal(logits, mine.logits) and isinstance(cache, MambaCache)


def test_streamers_and_criteria(ours):
    class Streamer:
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, tokens):
            self.tokens += tokens.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    criteria = [lambda ids, scores: torch.full((1,), ids.shape[1] >= 15)]
    ids = ours.generate(IDS, **SHORT, streamer=streamer, stopping_criteria=criteria)
    assert ids.shape == (1, 15)
    assert streamer.tokens == ids[0].tolist() and streamer.ended

    class Only(transformers.LogitsProcessor):
        def __call__(self, ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([65]), 0.0)

    assert ours.generate(IDS, **SHORT, logits_processor=[Only()])[0, 9:].tolist() == [65] * 30


def test_what_transformers_asks_of_a_model(ours):
    assert ours.can_generate()
    assert ours.generation_config.eos_token_id == ours.language_model.config["eos_token_ids"]
    assert (ours.device, ours.dtype) == (torch.device("cpu"), torch.float32)
    assert ours.num_parameters() == ours.language_model.parameter_count
    assert ours.config.vocab_size == 256
    assert ours.to("cpu") is ours


def test_save_pretrained(ours, tmp_path):
    ours.save_pretrained(tmp_path / "copy")
    again = MambaForCausalLM.from_pretrained(tmp_path / "copy")
    assert again.language_model.fingerprint() == ours.language_model.fingerprint()
    assert torch.equal(again.generate(IDS, **SHORT), ours.generate(IDS, **SHORT))


# ---- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("assisted", [False, True])
def test_a_state_goes_on(ours, shipped, assisted, tmp_path):
    ids = torch.tensor([list(PROMPT.encode())])
    whole = shipped.generate(ids, max_new_tokens=40)
    options = {"assistant_model": ours} if assisted else {}
    first, state = shipped.generate(ids, max_new_tokens=20, return_state=True, **options)
    assert state.tokens_seen == [ids.shape[1] + 20]
    state.save(tmp_path / "state")
    kept = GenerationState.load(tmp_path / "state")
    for state in (state, kept):
        options["return_state"] = True
        second, after = shipped.generate(state=state, max_new_tokens=9, **options)
        del options["return_state"]
        third = shipped.generate(state=after, max_new_tokens=11, **options)
        assert torch.equal(torch.cat([first, second, third], 1), whole)
        assert after.tokens_seen == [ids.shape[1] + 29]
    more = torch.tensor([list(b" unto")])
    want = shipped.generate(torch.cat([first, more], 1), max_new_tokens=20)
    text = shipped.generate(more, state=kept, max_new_tokens=20, **options)
    assert torch.equal(torch.cat([first, text], 1), want)


def test_a_state_goes_on_in_another_process(shipped, tmp_path):
    ids = torch.tensor([list(PROMPT.encode())])
    whole = shipped.generate(ids, max_new_tokens=40)
    first, state = shipped.generate(ids, max_new_tokens=20, return_state=True)
    state.save(tmp_path / "state")
    out = run_python(
        """
import sys
from mamba_cpp.hf import GenerationState, MambaForCausalLM
model = MambaForCausalLM.from_pretrained(sys.argv[1], "f32")
state = GenerationState.load(sys.argv[2])
print(model.generate(state=state, max_new_tokens=20).tolist())
""",
        SHIPPED,
        tmp_path / "state",
    )
    assert first.tolist()[0] + eval(out)[0] == whole.tolist()[0]


def test_a_state_branches(shipped):
    ids = torch.tensor([list(PROMPT.encode()), list(b"In the beginning.")])
    first, state = shipped.generate(ids, max_new_tokens=5, return_state=True)
    greedy = shipped.generate(state=state, max_new_tokens=5)
    options = {"max_new_tokens": 10, "num_beams": 3}
    want = shipped.generate(first, **options)[:, first.shape[1] :]
    assert torch.equal(shipped.generate(state=state, **options), want)
    rows = shipped.generate(state=state, max_new_tokens=10, num_return_sequences=2, do_sample=True)
    assert rows.shape == (4, 10)
    # and is what it was
    assert torch.equal(shipped.generate(state=state, max_new_tokens=5), greedy)
    assert torch.equal(greedy, shipped.generate(first, max_new_tokens=5)[:, first.shape[1] :])


def test_the_librarys_own_states(shipped):
    generator = mamba_cpp.Generator(shipped.language_model)
    generator.read(list(PROMPT.encode()))
    more = torch.tensor([list(b" unto")])
    text, state = shipped.generate(
        more, state=generator.state(), max_new_tokens=10, return_state=True
    )
    assert state.tokens_seen == []  # a StackState does not say
    whole = torch.tensor([list(PROMPT.encode() + b" unto")])
    want = shipped.generate(whole, max_new_tokens=10)
    assert torch.equal(text, want[:, len(PROMPT) :])
    with pytest.raises(ValueError, match="inputs: expected at least one token"):
        shipped.generate(state=generator.state(), max_new_tokens=10)


def test_a_streamer_sees_a_text_once(shipped):
    seen = []

    class Streamer:
        def put(self, tokens):
            seen.extend(tokens.flatten().tolist())

        def end(self):
            pass

    ids = torch.tensor([list(PROMPT.encode())])
    first, state = shipped.generate(ids, max_new_tokens=5, streamer=Streamer(), return_state=True)
    second = shipped.generate(state=state, max_new_tokens=5, streamer=Streamer())
    assert seen == first[0].tolist() + second[0].tolist()


def test_caches_go_on_as_theirs(ours, theirs):
    texts = []
    for model in (ours, theirs):
        first = model.generate(IDS, **SHORT, return_dict_in_generate=True)
        cache = copy.deepcopy(first.cache)
        for cache in (first.cache, cache):
            texts.append(model.generate(first.sequences[:, -1:], cache=cache, **SHORT))
    assert all(torch.equal(text, texts[0]) for text in texts)


# ---- a draft ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"assistant_model": "bytes"},
        {"assistant_model": "shipped"},
        {"prompt_lookup_num_tokens": 5},
    ],
    ids=str,
)
def test_assisted_text_is_the_models_own(ours, shipped, options):
    drafts = {"bytes": ours, "shipped": shipped}
    if "assistant_model" in options:
        options = {"assistant_model": drafts[options["assistant_model"]]}
    ids = torch.tensor([list((PROMPT + ", " + PROMPT).encode())])
    want = shipped.generate(ids, max_new_tokens=60)
    runs = []
    read = MambaCache.read

    def counted(self, ids, keep):
        if self.model is shipped.language_model and keep > 1:
            runs.append(keep)
        return read(self, ids, keep)

    MambaCache.read = counted
    try:
        assert torch.equal(shipped.generate(ids, max_new_tokens=60, **options), want)
    finally:
        MambaCache.read = read
    assert runs and len(runs) < 60  # several tokens at a time


def test_assisted_sampling(ours, shipped):
    ids = torch.tensor([list(PROMPT.encode())])
    torch.manual_seed(1)
    text = shipped.generate(ids, max_new_tokens=40, do_sample=True, assistant_model=ours)
    assert text.shape == (1, ids.shape[1] + 40)


def test_crop(ours):
    cache = MambaCache(ours.language_model)
    cache.activate_past_recording()
    ids = torch.tensor([list(b"The state of things")])
    cache.read(ids[:, :10], 3)
    cache.read(ids[:, 10:12], 1)
    with pytest.raises(ValueError, match="tokens_to_remove: expected -5 to 0.*, got -6"):
        cache.crop(-6)
    cache.crop(-5)
    assert cache.get_seq_length() == 7
    logits = cache.read(ids[:, 7:], 1)
    torch.testing.assert_close(logits, ours(ids, logits_to_keep=1).logits, atol=1e-4, rtol=1e-4)
    cache.crop(0)
    with pytest.raises(ValueError, match="expected 0 to 0.*, got -1"):
        cache.crop(-1)


# ---- what is wrong ----------------------------------------------------------------------------


def test_errors_say_expected_and_got(ours, shipped, tmp_path):
    def fails(text, call):
        with pytest.raises(ValueError, match=text):
            call()

    _, state = ours.generate(IDS, **SHORT, return_state=True)
    fails("state: expected one of the model", lambda: shipped.generate(state=state, **SHORT))
    fails("state: expected a GenerationState .*, got int", lambda: ours.generate(state=3, **SHORT))
    fails(
        "return_state: expected num_beams 1, got 2",
        lambda: ours.generate(IDS, **SHORT, num_beams=2, return_state=True),
    )
    fails(
        "expected a state or a cache, got both",
        lambda: ours.generate(IDS, state=state, cache=MambaCache(ours.language_model)),
    )
    fails(
        "cache: expected a MambaCache, got DynamicCache",
        lambda: ours(IDS, cache=transformers.DynamicCache()),
    )
    three = ours.language_model.make_state(3)
    fails("expected 3 rows as in the state", lambda: ours.generate(IDS, state=three, **SHORT))
    fails("device: expected cpu", lambda: ours.to("cuda"))
    fails("ids: expected 0 to 255, got 300", lambda: ours(torch.tensor([[300]])))
    mamba_cpp.save_state(tmp_path / "state", three)
    fails("expected what save", lambda: GenerationState.load(tmp_path / "state"))


def test_only_hf_needs_transformers():
    modules = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    script = f"import sys, mamba_cpp; print({modules})"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert out.stdout == b"[]\n"


@pytest.mark.parametrize("version", ["4.57.3", "5.17.0", "5.24.0.dev0"])
def test_an_older_transformers_is_an_error(version):
    script = f"""
import transformers
transformers.__version__ = "{version}"
try:
    import mamba_cpp.hf
except ImportError as error:
    print(error)
"""
    assert run_python(script) == f"mamba_cpp.hf: expected transformers 5.24 or later, got {version}\n"
