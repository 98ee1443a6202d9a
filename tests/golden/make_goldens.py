"""Makes the tiny checkpoints of this folder and the values that the library's tests compare with.

    python make_goldens.py                   every model, into the folder of this file
    python make_goldens.py --out DIR base    only `base`, into DIR/base
    python make_goldens.py --search 400      the best of 400 seeds for each model; writes nothing

Needs torch, transformers, safetensors and numpy; README.md says which versions were used.

Per model: weights are drawn and rounded to the dtype of the file, the folder is written, and all else
starts from what was read back. The values come from plain_mamba.py (numpy, float64) and are only
written after they agree with transformers and after the checks of `check_lively`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

from plain_mamba import PlainMamba, Weights

BATCH, TIME, PROMPT, GREEDY = 2, 70, 9, 24
BIN_TO_SAFETENSORS = Path(__file__).resolve().parents[2] / "scripts" / "bin_to_safetensors.py"


@dataclass(frozen=True)
class Model:
    """One golden. What is not said is as in the published Mamba checkpoints."""

    name: str
    seed: int  # chosen with --search
    d_model: int
    layers: int
    vocab: int
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    inner: int | None = None  # None: expand * d_model
    rank: int | None = None  # None: ceil(d_model / 16)
    use_bias: bool = False
    use_conv_bias: bool = True
    tied: bool = True
    embedding_std: float = 0.5
    eps: float = 1e-5
    mixer_eps: float | None = None  # set: a Falcon-Mamba
    dtype: torch.dtype = torch.float32
    shard: str | None = None  # the largest shard, as save_pretrained reads it
    original: bool = False  # names and config of state-spaces/mamba instead of Hugging Face's
    pad_vocab_to: int = 1  # rows of the embedding: vocab rounded up to a multiple of this
    prompt: bytes | None = None  # set: a model of bytes that starts here; None: random ids

    @property
    def d_inner(self) -> int:
        return self.inner or self.expand * self.d_model

    @property
    def dt_rank(self) -> int:
        return self.rank or math.ceil(self.d_model / 16)

    @property
    def vocab_rows(self) -> int:
        return math.ceil(self.vocab / self.pad_vocab_to) * self.pad_vocab_to


# The eps of `biased` and `falcon` are far from the usual ones so that a reader that ignores the key fails.
MODELS = [
    Model("base", seed=70, d_model=32, layers=3, vocab=96),
    Model("biased", seed=150, d_model=24, layers=2, vocab=64, d_state=8, d_conv=2, expand=1, rank=5,
          use_bias=True, tied=False, embedding_std=1.0, eps=1e-2),
    Model("wide", seed=58, d_model=20, layers=2, vocab=50, d_state=100, d_conv=3, expand=3,
          use_conv_bias=False),
    Model("falcon", seed=85, d_model=22, layers=2, vocab=59, d_state=9, expand=16, inner=37, rank=3,
          tied=False, embedding_std=1.0, mixer_eps=1e-2),
    Model("sharded_bf16", seed=397, d_model=32, layers=3, vocab=96, dtype=torch.bfloat16, shard="30KB"),
    Model("original", seed=369, d_model=28, layers=2, vocab=77, d_state=12, d_conv=3, expand=3,
          original=True, pad_vocab_to=8),
    Model("bytes", seed=286, d_model=64, layers=2, vocab=256, embedding_std=0.3, prompt=b"The state"),
    Model("one", seed=358, d_model=8, layers=1, vocab=16, d_state=1, d_conv=1),
]  # fmt: skip


# Weights


def draw_weights(model: Model) -> dict[str, torch.Tensor]:
    """The published initialisation with noise on everything it leaves constant, and larger projections.

    The gains keep B, C and dt moving with the input and let a layer add as much to the residual stream
    as the embedding does. With the published gains an untrained model nearly repeats its input, and a
    test on it would not see most mistakes in the scan. With much larger ones it is chaotic, and a test
    on it would see rounding (`amplification`).
    """
    rng = np.random.default_rng(model.seed)
    d_model, d_inner, d_state, d_conv = model.d_model, model.d_inner, model.d_state, model.d_conv
    dt_rank = model.dt_rank

    def normal(std: float, *shape: int, mean: float = 0.0) -> np.ndarray:
        return rng.normal(mean, std, shape)

    embedding = normal(model.embedding_std, model.vocab_rows, d_model)
    if model.prompt is not None:  # mostly printable text comes out
        printable = np.isin(np.arange(model.vocab), np.arange(32, 127))
        embedding[~printable] *= 0.3
    embedding[model.vocab :] *= 1.5  # rows of the padding: a reader that samples them should be caught

    weights = {
        "backbone.embeddings.weight": embedding,
        "backbone.norm_f.weight": normal(0.2, d_model, mean=1.0),
    }
    for layer in range(model.layers):
        prefix = f"backbone.layers.{layer}."
        mixer = prefix + "mixer."
        weights[prefix + "norm.weight"] = normal(0.2, d_model, mean=1.0)
        weights[mixer + "in_proj.weight"] = normal(1.1 / math.sqrt(d_model), 2 * d_inner, d_model)
        weights[mixer + "conv1d.weight"] = normal(1.0 / math.sqrt(d_conv), d_inner, 1, d_conv)
        weights[mixer + "x_proj.weight"] = normal(2.0 / math.sqrt(d_inner), dt_rank + 2 * d_state, d_inner)
        weights[mixer + "dt_proj.weight"] = rng.uniform(-1.0, 1.0, (d_inner, dt_rank)) / math.sqrt(dt_rank)
        # softplus(bias) is spread evenly, on a log scale, over the published range of time steps
        dt = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), d_inner))
        weights[mixer + "dt_proj.bias"] = dt + np.log(-np.expm1(-dt))
        weights[mixer + "A_log"] = np.log(np.arange(1, d_state + 1)) + normal(0.3, d_inner, d_state)
        weights[mixer + "D"] = normal(0.2, d_inner, mean=1.0)
        weights[mixer + "out_proj.weight"] = normal(2.0 / math.sqrt(d_inner), d_model, d_inner)
        if model.use_conv_bias:
            weights[mixer + "conv1d.bias"] = normal(0.3, d_inner)
        if model.use_bias:
            weights[mixer + "in_proj.bias"] = normal(0.3, 2 * d_inner)
            weights[mixer + "out_proj.bias"] = normal(0.3, d_model)
    if not model.tied:
        weights["lm_head.weight"] = normal(0.5, model.vocab_rows, d_model)
    return {name: torch.from_numpy(value).to(model.dtype) for name, value in weights.items()}


# Folders


def hf_config(model: Model) -> transformers.PretrainedConfig:
    sizes = dict(
        hidden_size=model.d_model,
        intermediate_size=model.d_inner,
        num_hidden_layers=model.layers,
        vocab_size=model.vocab_rows,
        state_size=model.d_state,
        conv_kernel=model.d_conv,
        expand=model.expand,
        time_step_rank=model.dt_rank,
        use_bias=model.use_bias,
        use_conv_bias=model.use_conv_bias,
        layer_norm_epsilon=model.eps,
        tie_word_embeddings=model.tied,
    )
    if model.mixer_eps is None:
        return transformers.MambaConfig(**sizes)
    return transformers.FalconMambaConfig(**sizes, mixer_rms_eps=model.mixer_eps)


def hf_class(model: Model) -> type[transformers.PreTrainedModel]:
    return transformers.MambaForCausalLM if model.mixer_eps is None else transformers.FalconMambaForCausalLM


def with_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with lm_head.weight in any case; a tied head is a copy of the embedding."""
    return {"lm_head.weight": weights["backbone.embeddings.weight"].clone(), **weights}


def write_hf_folder(model: Model, weights: dict[str, torch.Tensor], folder: Path) -> None:
    hf = hf_class(model)(hf_config(model)).to(model.dtype)
    hf.load_state_dict(with_head(weights))
    hf.save_pretrained(folder, **({"max_shard_size": model.shard} if model.shard else {}))
    (folder / "generation_config.json").unlink()


def write_original_folder(model: Model, weights: dict[str, torch.Tensor], folder: Path) -> None:
    config = {
        "d_model": model.d_model,
        "n_layer": model.layers,
        "vocab_size": model.vocab,
        "ssm_cfg": {"d_state": model.d_state, "d_conv": model.d_conv, "expand": model.expand},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": model.pad_vocab_to,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    renamed = {name.replace("embeddings", "embedding"): tensor for name, tensor in with_head(weights).items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def write_folder(model: Model, weights: dict[str, torch.Tensor], folder: Path) -> None:
    (write_original_folder if model.original else write_hf_folder)(model, weights, folder)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, under Hugging Face names."""
    files = sorted(folder.glob("model*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name.replace("embedding.weight", "embeddings.weight"): t for name, t in tensors.items()}


def check_file(model: Model, drawn: dict[str, torch.Tensor], folder: Path) -> None:
    """What lies in the folder is what was drawn, bit for bit (an original one holds the head too)."""
    stored = read_weights(folder)
    expected = with_head(drawn) if model.original else drawn
    assert stored.keys() == expected.keys(), stored.keys() ^ expected.keys()
    for name, tensor in stored.items():
        assert tensor.dtype == model.dtype and torch.equal(tensor, expected[name]), name


def plain_model(model: Model, weights: dict[str, torch.Tensor]) -> PlainMamba:
    as_double = {name: tensor.to(torch.float64).numpy() for name, tensor in weights.items()}
    return PlainMamba(as_double, model.eps, model.mixer_eps)


def hf_model(model: Model, folder: Path) -> transformers.PreTrainedModel:
    """The folder as transformers reads it, in float64. It knows no original configs, only their names."""
    if not model.original:
        return hf_class(model).from_pretrained(folder, dtype=torch.float64).eval()
    hf = hf_class(model)(hf_config(model)).to(torch.float64).eval()
    hf.load_state_dict({name: t.to(torch.float64) for name, t in read_weights(folder).items()})
    return hf


# Values


def draw_ids(model: Model) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([model.seed, 1])
    ids = rng.integers(0, model.vocab, (BATCH, TIME))
    ids[0, 0], ids[1, 1] = 0, model.vocab - 1  # both ends of the embedding
    prompt = rng.integers(0, model.vocab, (1, PROMPT))
    if model.prompt is not None:
        prompt = np.frombuffer(model.prompt, np.uint8).astype(np.int64)[None, :]
    assert prompt.shape == (1, PROMPT)
    return ids, prompt


def greedy(plain: PlainMamba, prompt: np.ndarray, vocab: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The continuation [1, count] and the logits [count, rows] each of its tokens was chosen from."""
    states = plain.fresh_state(1)
    logits = plain.forward(prompt, states)[:, -1]
    ids, rows = [], []
    for _ in range(count):
        ids.append(logits[:, :vocab].argmax(axis=1))
        rows.append(logits[0])
        logits = plain.step(ids[-1], states)
    return np.stack(ids, axis=1), np.stack(rows)


def margin(rows: np.ndarray) -> float:
    """The smallest lead of the first token over the second, relative to the largest |logit|."""
    top = np.sort(rows, axis=1)[:, -2:]
    return float(np.min(top[:, 1] - top[:, 0]) / np.max(np.abs(rows)))


def golden(model: Model, plain: PlainMamba) -> dict[str, np.ndarray]:
    ids, prompt = draw_ids(model)
    states = plain.fresh_state(BATCH)
    logits = plain.forward(ids, states)[:, :, : model.vocab]
    return {
        "input_ids": ids,
        "logits": logits,
        "conv_states": np.stack([state.conv for state in states]),
        "ssm_states": np.stack([state.ssm for state in states]),
        "prompt_ids": prompt,
        "greedy_ids": greedy(plain, prompt, model.vocab, GREEDY)[0],
    }


# Comparison with transformers


@contextlib.contextmanager
def casts_to_float64() -> Iterator[None]:
    """Reads every cast to float32 as one to float64.

    Also in a float64 model, transformers casts A_log, D, the dt bias, the norms, the residual stream,
    discretised B and x, and the logits to float32. Those are meant to widen bf16 and f16; here they
    would hide errors below 1e-7. Nothing else of transformers is changed.
    """
    to = torch.Tensor.to

    def to_wide(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        widen = {torch.float32: torch.float64}
        args = tuple(widen.get(arg, arg) if isinstance(arg, torch.dtype) else arg for arg in args)
        kwargs = {k: widen.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
        return to(self, *args, **kwargs)

    torch.Tensor.to = to_wide
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:  # the originals are attributes of the base class of torch.Tensor
        del torch.Tensor.to, torch.Tensor.float


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what was expected, over the whole array."""
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(got - expected)) / norm if norm > 0 else 0.0


def hf_values(hf: transformers.PreTrainedModel, ids: np.ndarray, vocab: int) -> dict[str, np.ndarray]:
    """Logits and final states; the oldest of the d_conv inputs that transformers keeps is dropped."""
    with torch.no_grad():
        out = hf(torch.from_numpy(ids), use_cache=True)
    layers = out.cache_params.layers
    return {
        "logits": out.logits[:, :, :vocab].double().numpy(),
        "conv_states": np.stack([layer.conv_states[0][:, :, 1:].double().numpy() for layer in layers]),
        "ssm_states": np.stack([layer.recurrent_states[0].double().numpy() for layer in layers]),
    }


def hf_greedy(hf: transformers.PreTrainedModel, prompt: np.ndarray, vocab: int) -> np.ndarray:
    """The prompt at once, then one token per call on the cache."""
    ids: list[torch.Tensor] = []
    with torch.no_grad():
        out = hf(torch.from_numpy(prompt), use_cache=True)
        for _ in range(GREEDY):
            ids.append(out.logits[:, -1, :vocab].argmax(dim=1, keepdim=True))
            out = hf(ids[-1], use_cache=True, cache_params=out.cache_params)
    return torch.cat(ids, dim=1).numpy()


def check_against_transformers(model: Model, folder: Path, values: dict[str, np.ndarray]) -> None:
    hf = hf_model(model, folder)
    as_is = hf_values(hf, values["input_ids"], model.vocab)
    with casts_to_float64():
        wide = hf_values(hf, values["input_ids"], model.vocab)
        continuation = hf_greedy(hf, values["prompt_ids"], model.vocab)
    for title, got, bound in (("as it is", as_is, 1e-6), ("all in float64", wide, 1e-12)):
        errors = {name: relative(array, values[name]) for name, array in got.items()}
        print(f"  transformers {title}: " + ", ".join(f"{n} {e:.1e}" for n, e in errors.items()))
        for name, error in errors.items():
            assert got[name].shape == values[name].shape, (name, got[name].shape)
            assert error < bound, (name, error, bound)
    assert np.array_equal(continuation, values["greedy_ids"]), "another greedy continuation"
    print("  transformers, prompt and 24 single steps on its cache: the same greedy continuation")


# Checks that a test on these values can fail


def replaced(plain: PlainMamba, suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> PlainMamba:
    """The model with `change` applied to every weight whose name ends in `suffix`."""
    weights: Weights = {
        name: change(value) if name.endswith(suffix) else value for name, value in plain.weights.items()
    }
    return PlainMamba(weights, plain.eps, plain.mixer_eps)


def ablations(model: Model, plain: PlainMamba) -> dict[str, tuple[PlainMamba, float]]:
    """Wrong versions of the model, each with how much (relative) it has to change the logits."""

    def without_C(x_proj: np.ndarray) -> np.ndarray:
        keep = np.arange(len(x_proj)) < model.dt_rank + model.d_state
        return x_proj * keep[:, None]

    def last_tap(conv: np.ndarray) -> np.ndarray:
        return conv * (np.arange(model.d_conv) == model.d_conv - 1)

    def zero(value: np.ndarray) -> np.ndarray:
        return np.zeros_like(value)

    wrong = {
        "no ssm": (replaced(plain, "x_proj.weight", without_C), 0.10),
        "no memory in the ssm": (replaced(plain, "A_log", lambda a: a + 20.0), 0.05),
        "no D": (replaced(plain, "mixer.D", zero), 0.05),
        "no dt bias": (replaced(plain, "dt_proj.bias", zero), 0.05),
        "A the same in every channel": (replaced(plain, "A_log", lambda a: 0 * a + a.mean(axis=0)), 1e-4),
        "weights of the layers' norms 1": (replaced(plain, ".norm.weight", np.ones_like), 0.01),
        "weight of the last norm 1": (replaced(plain, "norm_f.weight", np.ones_like), 0.01),
    }
    if model.d_conv > 1:
        wrong["conv sees the last input only"] = (replaced(plain, "conv1d.weight", last_tap), 0.05)
    for bias in ("conv1d.bias", "in_proj.bias", "out_proj.bias"):
        if any(name.endswith(bias) for name in plain.weights):
            wrong["no " + bias] = (replaced(plain, bias, zero), 0.01)
    if not model.tied:
        embedding = plain.weights["backbone.embeddings.weight"]
        wrong["head tied"] = (replaced(plain, "lm_head.weight", lambda _: embedding), 0.05)
    if model.eps != 1e-5:
        wrong["eps 1e-5"] = (PlainMamba(plain.weights, 1e-5, plain.mixer_eps), 1e-4)
    if model.mixer_eps is not None:
        wrong["no norms in the mixer"] = (PlainMamba(plain.weights, plain.eps), 0.05)
        wrong["mixer eps 1e-6"] = (PlainMamba(plain.weights, plain.eps, 1e-6), 1e-4)
    return wrong


def amplification(model: Model, plain: PlainMamba, values: dict[str, np.ndarray]) -> float:
    """How much larger than a small relative change of every weight the change of the logits is."""
    rng, small = np.random.default_rng(0), 1e-7
    nearby = replaced(plain, "", lambda weight: weight * (1 + small * rng.standard_normal(weight.shape)))
    logits = nearby.forward(values["input_ids"], nearby.fresh_state(BATCH))[:, :, : model.vocab]
    return relative(logits, values["logits"]) / small


def check_lively(
    model: Model, plain: PlainMamba, values: dict[str, np.ndarray], quiet: bool = False
) -> float:
    """Asserts that the values would show a mistake; returns the greedy margin."""

    def say(text: str) -> None:
        if not quiet:
            print("  " + text)

    logits = values["logits"]
    spread = float(np.mean(logits.max(axis=2) - logits.min(axis=2)))
    say(f"logits: spread over the vocabulary {spread:.1f}, standard deviation {logits.std():.2f}")
    assert spread > 4.0, spread

    factor = amplification(model, plain, values)
    say(f"a small random relative change of all weights comes out {factor:.1f} times as large")
    assert factor < 10.0, factor

    ids, rows = greedy(plain, values["prompt_ids"], model.vocab, GREEDY)
    lead = margin(rows[:, : model.vocab])
    distinct = len(set(ids[0]))
    say(f"greedy: {ids[0].tolist()}, {distinct} distinct, smallest margin {lead:.1e} of the largest |logit|")
    assert lead > 1e-3, lead
    assert distinct >= min(10, model.vocab // 4), distinct
    assert 0 not in ids, "the greedy continuation meets the end-of-text id"
    if model.vocab_rows > model.vocab:
        inside_padding = int(np.sum(rows.argmax(axis=1) >= model.vocab))
        say(f"greedy over all {model.vocab_rows} rows would leave the vocabulary {inside_padding} times")
        assert inside_padding > 0
    if model.prompt is not None:
        text = bytes(greedy(plain, values["prompt_ids"], model.vocab, 200)[0][0].tolist())
        say(f"200 bytes of text: {text!r}")
        assert len(set(text[-100:])) >= 20, "the text falls into a short loop"
        longest = max(len(list(run)) for _, run in itertools.groupby(text))
        assert longest <= 6, "the text repeats one byte"

    for name, (wrong, least) in ablations(model, plain).items():
        states = wrong.fresh_state(BATCH)
        change = relative(wrong.forward(values["input_ids"], states)[:, :, : model.vocab], logits)
        say(f"{name}: the logits change by {100 * change:.3g} %")
        assert change > least, (name, change, least)
    return lead


def check_bin_conversion(folder: Path) -> None:
    """The weights as pytorch_model.bin come back equal through scripts/bin_to_safetensors.py.

    Shards stay shards on the way, and a head equal to the embedding shares its memory, as in a file
    that was saved from a tied model.
    """
    files = {file.stem.replace("model", "pytorch_model") + ".bin": load_file(file)
             for file in sorted(folder.glob("model*.safetensors"))}  # fmt: skip
    weights = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as scratch:
        for file, tensors in files.items():
            embedding = tensors.get("backbone.embedding.weight")
            if "lm_head.weight" in tensors and embedding is not None:
                tensors["lm_head.weight"] = embedding
            torch.save(tensors, Path(scratch) / file)
        if len(files) > 1:
            weight_map = {name: file for file, tensors in files.items() for name in tensors}
            index = json.dumps({"metadata": {}, "weight_map": weight_map})
            (Path(scratch) / "pytorch_model.bin.index.json").write_text(index)
        command = [sys.executable, str(BIN_TO_SAFETENSORS), scratch]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert subprocess.run(command, capture_output=True).returncode == 1, "the file was overwritten"
        back = load_file(Path(scratch) / "model.safetensors")
    assert back.keys() == weights.keys()
    for name, tensor in back.items():
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name]), name
    print(f"  as {len(files)} .bin and back through bin_to_safetensors.py: equal")


# The program


def make(model: Model, out: Path) -> None:
    folder = out / model.name
    shutil.rmtree(folder, ignore_errors=True)
    drawn = draw_weights(model)
    write_folder(model, drawn, folder)
    check_file(model, drawn, folder)
    plain = plain_model(model, read_weights(folder))
    values = golden(model, plain)

    print(f"{model.name}: {sum(weight.numel() for weight in drawn.values())} parameters, seed {model.seed}")
    check_against_transformers(model, folder, values)
    check_lively(model, plain, values)
    check_bin_conversion(folder)
    save_file({name: torch.from_numpy(array.copy()) for name, array in values.items()},
              folder / "golden.safetensors")  # fmt: skip
    print(f"  {sum(file.stat().st_size for file in folder.iterdir())} bytes")


def search(model: Model, seeds: int) -> None:
    """Prints the seeds with the largest greedy margins among those that pass check_lively."""
    leads: dict[int, float] = {}
    for seed in range(seeds):
        candidate = replace(model, seed=seed)
        plain = plain_model(candidate, draw_weights(candidate))
        with contextlib.suppress(AssertionError):
            leads[seed] = check_lively(candidate, plain, golden(candidate, plain), quiet=True)
    best = sorted(leads, key=leads.__getitem__, reverse=True)[:3]
    print(f"{model.name}: {len(leads)} of {seeds} seeds pass; the best: "
          + ", ".join(f"{seed} (margin {leads[seed]:.1e})" for seed in best))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="which models (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="default: this folder"
    )
    parser.add_argument("--search", type=int, metavar="N", help="look for a seed below N; writes nothing")
    args = parser.parse_args()
    unknown = set(args.names) - {model.name for model in MODELS}
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}, "
          f"safetensors {safetensors.__version__}")  # fmt: skip
    for model in MODELS:
        if not args.names or model.name in args.names:
            search(model, args.search) if args.search else make(model, args.out)


if __name__ == "__main__":
    main()
