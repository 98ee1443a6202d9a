"""Makes the tiny Mamba-2 checkpoints of this folder and the values that the library's tests compare with.

    python make_mamba2.py                       every model, into the folder of this file
    python make_mamba2.py --out DIR mamba2_one  only `mamba2_one`, into DIR/mamba2_one
    python make_mamba2.py --search 400          the best of 400 seeds for each model; writes nothing

Needs numpy and safetensors; README.md says which versions were used. As make_goldens.py does it: weights
are drawn and rounded to f32, the folder is written, and the values come from plain_mamba2.py (numpy,
float64) on what was read back, after the checks of `check_lively`. The files' forms are those that
transformers 5 and mamba_ssm write.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from plain_mamba import Weights
from plain_mamba2 import PlainMamba2

BATCH, TIME, PROMPT, GREEDY = 2, 140, 9, 24
INFINITY = float("inf")


@dataclass(frozen=True)
class Model:
    """One golden. What is not said is as in the published Mamba-2 checkpoints, in small."""

    name: str
    seed: int  # chosen with --search
    d_model: int
    head_dim: int
    groups: int = 1
    layers: int = 2
    vocab: int = 40
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    use_bias: bool = False
    use_conv_bias: bool = True
    rmsnorm: bool = True
    norm_before_gate: bool = False
    dt_limit: tuple[float, float] = (0.0, INFINITY)
    tied: bool = True
    eps: float = 1e-5
    embedding_std: float = 0.5
    out_gain: float = 1.5
    form: str = "hf"  # "hf", "codestral" (its prefix, in two shards) or "original" (mamba_ssm's)
    pad_vocab_to: int = 1

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.head_dim

    @property
    def channels(self) -> int:
        return self.d_inner + 2 * self.groups * self.d_state

    @property
    def vocab_rows(self) -> int:
        return math.ceil(self.vocab / self.pad_vocab_to) * self.pad_vocab_to


MODELS = [
    Model("mamba2_one", seed=59, d_model=32, head_dim=16),
    Model("mamba2_groups", seed=40, d_model=24, head_dim=8, groups=3, d_state=8, eps=1e-2, tied=False,
          embedding_std=1.0),
    Model("mamba2_h80", seed=10, d_model=16, head_dim=80, groups=2, layers=1, d_state=128, expand=10),
    Model("mamba2_limits", seed=47, d_model=32, head_dim=32, d_state=20, d_conv=3, use_bias=True,
          dt_limit=(0.01, 0.05), tied=False, embedding_std=1.0),
    Model("mamba2_codestral", seed=7, d_model=32, head_dim=4, groups=8, d_state=5, tied=False,
          embedding_std=1.0, form="codestral"),
    Model("mamba2_original", seed=25, d_model=28, head_dim=14, groups=2, vocab=37, d_state=12, d_conv=2,
          use_conv_bias=False, norm_before_gate=True, form="original", pad_vocab_to=8),
    Model("mamba2_gate", seed=80, d_model=24, head_dim=12, groups=2, d_state=10, rmsnorm=False, out_gain=8.0,
          form="original"),
]  # fmt: skip


# Weights


def draw_weights(model: Model) -> Weights:
    """The published initialisation with noise on everything it leaves constant, and larger projections."""
    rng = np.random.default_rng(model.seed)
    d_model, d_inner, heads = model.d_model, model.d_inner, model.heads

    def normal(std: float, *shape: int, mean: float = 0.0) -> np.ndarray:
        return rng.normal(mean, std, shape)

    embedding = normal(model.embedding_std, model.vocab_rows, d_model)
    embedding[model.vocab :] *= 1.5  # rows of the padding: a reader that samples them should be caught
    weights = {
        "backbone.embeddings.weight": embedding,
        "backbone.norm_f.weight": normal(0.2, d_model, mean=1.0),
    }
    for layer in range(model.layers):
        prefix = f"backbone.layers.{layer}."
        mixer = prefix + "mixer."
        rows = d_inner + model.channels + heads
        weights[prefix + "norm.weight"] = normal(0.2, d_model, mean=1.0)
        weights[mixer + "in_proj.weight"] = normal(1.1 / math.sqrt(d_model), rows, d_model)
        weights[mixer + "conv1d.weight"] = normal(1.0 / math.sqrt(model.d_conv), model.channels, 1, model.d_conv)
        dt = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), heads))
        weights[mixer + "dt_bias"] = dt + np.log(-np.expm1(-dt))
        weights[mixer + "A_log"] = np.log(rng.uniform(1.0, 16.0, heads))
        weights[mixer + "D"] = normal(0.2, heads, mean=1.0)
        if model.rmsnorm:
            weights[mixer + "norm.weight"] = normal(0.3, d_inner, mean=1.0)
        weights[mixer + "out_proj.weight"] = normal(model.out_gain / math.sqrt(d_inner), d_model, d_inner)
        if model.use_conv_bias:
            weights[mixer + "conv1d.bias"] = normal(0.3, model.channels)
        if model.use_bias:
            weights[mixer + "in_proj.bias"] = normal(0.3, rows)
            weights[mixer + "out_proj.bias"] = normal(0.3, d_model)
    if not model.tied:
        weights["lm_head.weight"] = normal(0.5, model.vocab_rows, d_model)
    return {name: value.astype(np.float32) for name, value in weights.items()}


# Folders


def hf_config(model: Model) -> dict:
    limits = [{"__float__": "Infinity"} if limit == INFINITY else limit for limit in model.dt_limit]
    if model.form == "codestral":  # as transformers 4 wrote it
        limits = list(model.dt_limit)
    config = {
        "architectures": ["Mamba2ForCausalLM"], "bos_token_id": 0, "chunk_size": 256,
        "conv_kernel": model.d_conv, "eos_token_id": 0, "expand": model.expand, "head_dim": model.head_dim,
        "hidden_act": "silu", "hidden_size": model.d_model, "initializer_range": 0.1,
        "layer_norm_epsilon": model.eps, "model_type": "mamba2", "n_groups": model.groups,
        "num_heads": model.heads, "num_hidden_layers": model.layers, "pad_token_id": 1,
        "rescale_prenorm_residual": False, "residual_in_fp32": True, "rms_norm": True,
        "state_size": model.d_state, "tie_word_embeddings": model.tied, "time_step_floor": 0.0001,
        "time_step_limit": limits, "time_step_max": 0.1, "time_step_min": 0.001,
        "time_step_rank": math.ceil(model.d_model / 16), "use_bias": model.use_bias, "use_cache": True,
        "use_conv_bias": model.use_conv_bias, "vocab_size": model.vocab_rows,
    }  # fmt: skip
    if model.form == "codestral":
        config["norm_before_gate"] = True  # which does nothing there
    return config


def original_config(model: Model) -> dict:
    return {
        "d_model": model.d_model, "d_intermediate": 0, "n_layer": model.layers, "vocab_size": model.vocab,
        "ssm_cfg": {"layer": "Mamba2", "d_state": model.d_state, "d_conv": model.d_conv,
                    "headdim": model.head_dim, "ngroups": model.groups, "conv_bias": model.use_conv_bias,
                    "norm_before_gate": model.norm_before_gate, "rmsnorm": model.rmsnorm},
        "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
        "fused_add_norm": True, "pad_vocab_size_multiple": model.pad_vocab_to,
        "tie_embeddings": model.tied,
    }  # fmt: skip


def write_folder(model: Model, weights: Weights, folder: Path) -> None:
    folder.mkdir(parents=True)
    config = original_config(model) if model.form == "original" else hf_config(model)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if model.form == "original":
        head = {"lm_head.weight": weights["backbone.embeddings.weight"]}
        renamed = {name.replace("embeddings", "embedding"): w for name, w in {**head, **weights}.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    elif model.form == "codestral":
        named = {"model." + name: weight for name, weight in weights.items()}
        shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
        for i, (name, weight) in enumerate(named.items()):
            list(shards.values())[2 * i // len(named)][name] = weight
        for file, tensors in shards.items():
            save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        size = sum(weight.nbytes for weight in named.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_weights(folder: Path) -> Weights:
    """Every tensor of a folder, in float64 and under Hugging Face names."""
    files = sorted(folder.glob("model*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {
        name.removeprefix("model.").replace("embedding.weight", "embeddings.weight"): t.astype(np.float64)
        for name, t in tensors.items()
    }


def plain_model(model: Model, weights: Weights, **other: object) -> PlainMamba2:
    options = {"rmsnorm": model.rmsnorm, "norm_before_gate": model.norm_before_gate, "dt_limit": model.dt_limit, **other}
    wide = {name: weight.astype(np.float64) for name, weight in weights.items()}
    return PlainMamba2(wide, options.pop("eps", model.eps), model.groups, **options)


# Values


def draw_ids(model: Model) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([model.seed, 1])
    ids = rng.integers(0, model.vocab, (BATCH, TIME))
    ids[0, 0], ids[1, 1] = 0, model.vocab - 1  # both ends of the embedding
    return ids, rng.integers(0, model.vocab, (1, PROMPT))


def greedy(plain: PlainMamba2, prompt: np.ndarray, vocab: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The continuation [1, count] and the logits [count, rows] each of its tokens was chosen from."""
    states = plain.fresh_state(1)
    logits = plain.forward(prompt, states)[:, -1]
    ids, rows = [], []
    for _ in range(count):
        ids.append(logits[:, :vocab].argmax(axis=1))
        rows.append(logits[0])
        logits = plain.step(ids[-1], states)
    return np.stack(ids, axis=1), np.stack(rows)


def golden(model: Model, plain: PlainMamba2) -> dict[str, np.ndarray]:
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


# Checks that a test on these values can fail


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what was expected, over the whole array."""
    return float(np.linalg.norm(got - expected)) / float(np.linalg.norm(expected))


def ablations(model: Model, weights: Weights) -> dict[str, tuple[PlainMamba2, float]]:
    """Wrong versions of the model, each with how much (relative) it has to change the logits."""
    d_inner, states = model.d_inner, model.groups * model.d_state

    def replaced(suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> PlainMamba2:
        return plain_model(model, {n: change(w) if n.endswith(suffix) else w for n, w in weights.items()})

    def rows_moved(order: list[tuple[int, int]]) -> Callable[[np.ndarray], np.ndarray]:
        index = np.concatenate([np.arange(first, first + count) for first, count in order])
        return lambda matrix: matrix[np.concatenate([index, np.arange(len(index), len(matrix))])]

    def without_C() -> PlainMamba2:  # which is zero where nothing of it comes into its convolution or out
        rows, changed = slice(2 * d_inner + states, 2 * d_inner + 2 * states), {}
        for name, weight in weights.items():
            changed[name] = weight.copy()
            if name.endswith(("in_proj.weight", "in_proj.bias")):
                changed[name][rows] = 0
            if name.endswith("conv1d.bias"):
                changed[name][d_inner + states :] = 0
        return plain_model(model, changed)

    z, x, B, C = (0, d_inner), (d_inner, d_inner), (2 * d_inner, states), (2 * d_inner + states, states)
    taps = np.arange(model.d_conv) == model.d_conv - 1
    wrong = {
        "no ssm": (without_C(), 0.05),
        "B and C swapped": (replaced("in_proj.weight", rows_moved([z, x, C, B])), 0.02),
        "x and z swapped": (replaced("in_proj.weight", rows_moved([x, z, B, C])), 0.05),
        "no memory in the ssm": (replaced("A_log", lambda a: a + 20.0), 0.02),
        "A the same in every head": (replaced("A_log", lambda a: 0 * a + a.mean()), 1e-4),
        "no D": (replaced("mixer.D", np.zeros_like), 0.05),
        "no dt bias": (replaced("dt_bias", np.zeros_like), 0.02),
        "weights of the layers' norms 1": (replaced(".norm.weight", np.ones_like), 0.01),
        "weight of the last norm 1": (replaced("norm_f.weight", np.ones_like), 0.01),
        "conv sees the last input only": (replaced("conv1d.weight", lambda w: w * taps), 0.05),
    }  # fmt: skip
    if model.rmsnorm:
        other = plain_model(model, weights, norm_before_gate=not model.norm_before_gate)
        wrong["gate on the other side"] = (other, 0.05)
    else:
        ones = {f"backbone.layers.{i}.mixer.norm.weight": np.ones(d_inner) for i in range(model.layers)}
        wrong["a norm of ones"] = (plain_model(model, {**weights, **ones}, rmsnorm=True), 0.05)
    if model.groups > 1 and model.rmsnorm:
        wrong["norm over the whole width"] = (plain_model(model, weights, norm_groups=1), 1e-3)
    if 1 < model.groups < model.heads:
        wrong["groups of every other head"] = (plain_model(model, weights, interleaved=True), 1e-3)
    if model.dt_limit != (0.0, INFINITY):
        wrong["no limits on dt"] = (plain_model(model, weights, dt_limit=(0.0, INFINITY)), 1e-3)
    for bias in ("conv1d.bias", "in_proj.bias", "out_proj.bias"):
        if any(name.endswith(bias) for name in weights):
            wrong["no " + bias] = (replaced(bias, np.zeros_like), 0.01)
    if not model.tied:
        wrong["head tied"] = (replaced("lm_head.weight", lambda _: weights["backbone.embeddings.weight"]), 0.05)
    if model.eps != 1e-5:
        wrong["eps 1e-5"] = (plain_model(model, weights, eps=1e-5), 1e-4)
    return wrong


def check_lively(model: Model, weights: Weights, values: dict[str, np.ndarray], quiet: bool = False) -> float:
    """Asserts that the values would show a mistake; returns the greedy margin."""

    def say(text: str) -> None:
        if not quiet:
            print("  " + text)

    plain, logits = plain_model(model, weights), values["logits"]

    def change(other: PlainMamba2) -> float:
        got = other.forward(values["input_ids"], other.fresh_state(BATCH))[:, :, : model.vocab]
        return relative(got, logits)

    ids, rows = greedy(plain, values["prompt_ids"], model.vocab, GREEDY)
    top = np.sort(rows[:, : model.vocab], axis=1)[:, -2:]
    lead = float(np.min(top[:, 1] - top[:, 0]) / np.max(np.abs(rows[:, : model.vocab])))
    distinct = len(set(ids[0]))
    say(f"greedy: {ids[0].tolist()}, {distinct} distinct, smallest margin {lead:.1e} of the largest |logit|")
    assert lead > 1e-3, lead
    assert distinct >= 10, distinct
    assert 0 not in ids, "the greedy continuation meets the end-of-text id"
    if model.vocab_rows > model.vocab:
        assert np.sum(rows.argmax(axis=1) >= model.vocab) > 0, "the padding is never in reach"

    rng, small = np.random.default_rng(0), 1e-7
    nearby = {n: w.astype(np.float64) * (1 + small * rng.standard_normal(w.shape)) for n, w in weights.items()}
    factor = change(plain_model(model, nearby)) / small
    say(f"a small random relative change of all weights comes out {factor:.1f} times as large")
    assert factor < 10.0, factor
    for name, (wrong, least) in ablations(model, weights).items():
        changed = change(wrong)
        say(f"{name}: the logits change by {100 * changed:.3g} %")
        assert changed > least, (name, changed, least)
    return lead


# The program


def make(model: Model, out: Path) -> None:
    folder = out / model.name
    shutil.rmtree(folder, ignore_errors=True)
    drawn = draw_weights(model)
    write_folder(model, drawn, folder)
    weights = read_weights(folder)
    for name, weight in drawn.items():
        assert np.array_equal(weights[name].astype(np.float32), weight), name
    values = golden(model, plain_model(model, weights))
    print(f"{model.name}: {sum(weight.size for weight in drawn.values())} parameters, seed {model.seed}")
    check_lively(model, weights, values)
    save_file({name: np.ascontiguousarray(array) for name, array in values.items()}, folder / "golden.safetensors")
    print(f"  {sum(file.stat().st_size for file in folder.iterdir())} bytes")


def search(model: Model, seeds: int) -> None:
    """Prints the seeds with the largest greedy margins among those that pass check_lively."""
    leads: dict[int, float] = {}
    for seed in range(seeds):
        candidate = replace(model, seed=seed)
        weights = draw_weights(candidate)
        with contextlib.suppress(AssertionError):
            prompt = draw_ids(candidate)[1]
            plain = plain_model(candidate, weights)
            ids = greedy(plain, prompt, candidate.vocab, GREEDY)[0]  # the cheapest check first
            assert 0 not in ids and len(set(ids[0])) >= 10
            leads[seed] = check_lively(candidate, weights, golden(candidate, plain), quiet=True)
    best = sorted(leads, key=leads.__getitem__, reverse=True)[:3]
    print(f"{model.name}: {len(leads)} of {seeds} seeds pass; the best: "
          + ", ".join(f"{seed} (margin {leads[seed]:.1e})" for seed in best))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="which models (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="default: this folder")
    parser.add_argument("--search", type=int, metavar="N", help="look for a seed below N; writes nothing")
    args = parser.parse_args()
    unknown = set(args.names) - {model.name for model in MODELS}
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    for model in MODELS:
        if not args.names or model.name in args.names:
            search(model, args.search) if args.search else make(model, args.out)


if __name__ == "__main__":
    main()
