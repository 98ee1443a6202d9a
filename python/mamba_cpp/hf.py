"""Language models of this library behind transformers' generate().

    from mamba_cpp.hf import MambaForCausalLM
    model = MambaForCausalLM.from_pretrained("mamba-130m-hf")
    ids, state = model.generate(ids, max_new_tokens=50, return_state=True)
    state.save("talk.safetensors")

and in another process, where nothing is read again:

    state = GenerationState.load("talk.safetensors")
    ids = model.generate(state=state, max_new_tokens=50)

Needs PyTorch and transformers 5.24 or later. For inference: what comes out carries no gradient.
"""

import os
from dataclasses import dataclass

import torch
import transformers
from packaging.version import Version

# Before any of their names, which an older one may lack; pyproject.toml says the same.
if Version(transformers.__version__) < Version("5.24"):
    raise ImportError(
        f"mamba_cpp.hf: expected transformers 5.24 or later, got {transformers.__version__}",
        name="transformers",
    )

from transformers import (  # noqa: E402
    AutoConfig,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput  # noqa: E402

from ._core import LanguageModel, StackState, load_state, save_state  # noqa: E402
from ._hf_cache import MambaCache  # noqa: E402

__all__ = ["GenerationState", "MambaCache", "MambaForCausalLM"]

_TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class GenerationState:
    """What generate(..., return_state=True) gives back: all that it takes to go on.

    state: after every token, read and generated; logits: f32 [batch, vocab_size] for the next one;
    last: the last token of each row, [batch, 1]; tokens_seen: how many tokens each row has seen,
    padding included, empty where that is not known. A row that ended before the others has seen the
    padding behind its end, too.
    """

    def __init__(self, state, logits, last, tokens_seen, fingerprint):
        self.state = state
        self.logits = logits
        self.last = last
        self.tokens_seen = tokens_seen
        self.fingerprint = fingerprint

    def save(self, path):
        """A state file of the library (mamba_cpp.load_state), written whole or not at all."""
        save_state(
            path,
            self.state,
            fingerprint=self.fingerprint,
            tokens_seen=self.tokens_seen,
            extras={
                "generate.logits": self.logits.cpu().contiguous(),
                "generate.last": self.last.cpu().to(torch.int32).contiguous(),
            },
        )

    @classmethod
    def load(cls, path, device="cpu"):
        """What save() wrote; a file without it is a ValueError."""
        saved = load_state(path, device=device)
        missing = {"generate.logits", "generate.last"} - saved.extras.keys()
        if missing:
            raise ValueError(
                f"GenerationState.load: {os.fspath(path)}: expected what save() wrote, got a state "
                f"without {', '.join(sorted(missing))}"
            )
        logits = torch.from_dlpack(saved.extras["generate.logits"]).to(device)
        last = torch.from_dlpack(saved.extras["generate.last"]).long().to(device)
        return cls(saved.state, logits, last, saved.tokens_seen, saved.fingerprint)


@dataclass
class MambaOutput(ModelOutput):
    """loss: scalar, where labels were given; logits: f32 [batch, time, vocab_size]; cache:
    MambaCache."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: MambaCache | None = None


class _AfterPrompt:
    """A streamer that is not shown a prompt which was streamed before."""

    def __init__(self, streamer):
        self.streamer = streamer
        self.prompt = True

    def put(self, tokens):
        if not self.prompt:
            self.streamer.put(tokens)
        elif getattr(self.streamer, "next_tokens_are_prompt", False):
            self.streamer.next_tokens_are_prompt = False
        self.prompt = False

    def end(self):
        self.streamer.end()


class MambaForCausalLM(PreTrainedModel, GenerationMixin):
    """A model folder of this library as transformers' generate() wants it. Weights and arithmetic
    are the library's, so there are no parameters, no gradients and no hidden states."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, config, language_model):
        super().__init__(config)
        self.language_model = language_model

    @classmethod
    def from_pretrained(cls, folder, dtype=None, device="cpu"):
        """A folder as LanguageModel.load takes it, with its generation_config.json if it has one.

        dtype: "f32", "bf16", "f16" or PyTorch's; None: as in the file. device: "cpu", "cuda", ...
        """
        language_model = LanguageModel.load(folder, dtype, device)
        model = cls(_config_of(folder, language_model), language_model)
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:  # there is none
            model.generation_config = GenerationConfig.from_model_config(model.config)
        ends = language_model.config["eos_token_ids"]
        model.generation_config.eos_token_id = ends or None
        return model

    def save_pretrained(self, folder, **kwargs):
        """config.json, model.safetensors and generation_config.json."""
        self.language_model.save(folder)
        self.generation_config.save_pretrained(folder)

    @property
    def device(self):
        return torch.device(self.language_model.device)

    @property
    def dtype(self):
        return _TORCH_DTYPES[self.language_model.dtype]

    def to(self, device):
        if torch.device(device) != self.device:
            raise ValueError(
                f"MambaForCausalLM.to: device: expected {self.device}, where it was loaded "
                f"(from_pretrained(folder, device=...)), got {device}"
            )
        return self

    def num_parameters(self, only_trainable=False, exclude_embeddings=False):
        return 0 if only_trainable else self.language_model.parameter_count

    def forward(
        self,
        input_ids,
        attention_mask=None,
        cache=None,
        labels=None,
        use_cache=None,
        return_dict=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """input_ids [batch, time] go on from `cache`, without one from nothing.

        attention_mask [batch, time or more]: zero leaves a token out. labels [batch, time]: the
        loss of predicting them one token ahead, -100 is not counted. logits_to_keep: of so many
        last tokens, 0: of all. Returns loss, logits f32 [batch, kept, vocab_size] and the cache.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("MambaForCausalLM.forward: inputs_embeds: expected none, got some")
        cache = MambaCache(self.language_model) if cache is None else cache
        if not isinstance(cache, MambaCache):
            raise ValueError(
                "MambaForCausalLM.forward: cache: expected a MambaCache, got "
                f"{type(cache).__name__}"
            )
        time = input_ids.shape[1]
        some = isinstance(logits_to_keep, int)
        keep = max(logits_to_keep if some and logits_to_keep > 0 else time, 1)
        mask = attention_mask
        if mask is not None:  # it may begin before what is read now
            mask = mask[:, mask.shape[1] - time :]
        if mask is None or bool(mask.all()):
            logits = cache.read(input_ids, keep)
        else:
            logits = cache.read_padded(input_ids, mask, keep)
        logits = logits.to(input_ids.device)
        if not some:
            logits = logits[:, logits_to_keep]
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
            )
        cache = None if use_cache is False else cache
        if return_dict is False:
            return tuple(value for value in (loss, logits, cache) if value is not None)
        return MambaOutput(loss=loss, logits=logits, cache=cache)

    def prepare_inputs_for_generation(
        self, input_ids, cache=None, attention_mask=None, use_cache=None, **kwargs
    ):
        read = 0 if cache is None else cache.seen
        if read >= input_ids.shape[1] and not cache.starts:
            read = 0  # it is a piece of a prompt alone (prefill_chunk_size)
        inputs = {
            "input_ids": input_ids[:, read:],
            "cache": cache,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }
        if "logits_to_keep" in kwargs:
            inputs["logits_to_keep"] = kwargs["logits_to_keep"]
        return inputs

    @torch.no_grad()
    def generate(
        self, inputs=None, generation_config=None, *args, state=None, return_state=False, **kwargs
    ):
        """transformers' generate(), and it goes on from a state.

        state: a GenerationState, or a StackState (LanguageModel.make_state, Generator.state), with
        as many rows as `inputs` [batch, time] or one for all; `inputs` are then what comes after
        it. From a GenerationState it also goes on without any. It is not changed. What comes back
        is `inputs` and what was written, so the pieces of a text in a row are the text.
        return_state: (what generate() returns, GenerationState); not with beams.

        A cache that generate() gave back (cache=) goes on in the same way, but then `inputs` begin
        with the last token written, which it has not seen. assistant_model and
        prompt_lookup_num_tokens work as with any model; the assistant knows nothing of the state.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        config = generation_config or self.generation_config
        beams = kwargs.get("num_beams", config.num_beams) or 1
        use_cache = kwargs.get("use_cache", config.use_cache)
        assistant = getattr(config, "is_assistant", False)
        cache = kwargs.pop("cache", None)
        if return_state and beams > 1:
            raise ValueError(
                "MambaForCausalLM.generate: return_state: expected num_beams 1, got "
                f"{beams}: a beam that is finished has no state any more"
            )
        if state is not None and cache is not None:
            raise ValueError("MambaForCausalLM.generate: expected a state or a cache, got both")
        goes_on = False
        if state is not None:
            cache, inputs, goes_on = self._cache_from(state, inputs)
            if goes_on and kwargs.get("streamer") is not None:
                kwargs["streamer"] = _AfterPrompt(kwargs["streamer"])
        elif cache is not None:
            if not assistant:
                cache.begin()
        elif use_cache is not False or return_state:
            cache = MambaCache(self.language_model)
        if cache is not None and assistant:
            cache.activate_past_recording()
        result = super().generate(inputs, generation_config, *args, cache=cache, **kwargs)
        ids = result if isinstance(result, torch.Tensor) else result.sequences
        if return_state:
            cache.read(ids[:, cache.seen :], 1)
            reached = GenerationState(
                cache.state,
                cache.logits.clone(),
                ids[:, -1:].clone(),
                self._tokens_seen(state, ids, goes_on, cache.state.batch),
                self.language_model.fingerprint(),
            )
        if goes_on:  # the token that stood for the text so far
            ids = ids[:, 1:]
            if isinstance(result, torch.Tensor):
                result = ids
            else:
                result.sequences = ids
        return (result, reached) if return_state else result

    def _cache_from(self, state, inputs):
        """The cache, the ids, and whether these are a token that has been read already."""
        if not isinstance(state, (GenerationState, StackState)):
            raise ValueError(
                "MambaForCausalLM.generate: state: expected a GenerationState or a StackState, got "
                f"{type(state).__name__}"
            )
        whole = isinstance(state, GenerationState)
        fingerprint = self.language_model.fingerprint()
        if whole and state.fingerprint != fingerprint:
            raise ValueError(
                f"MambaForCausalLM.generate: state: expected one of the model {fingerprint}, got "
                f"one of {state.fingerprint}"
            )
        cache = MambaCache(self.language_model, (state.state if whole else state).clone())
        if inputs is not None and inputs.shape[1] > 0:
            return cache, inputs, False
        if not whole:
            raise ValueError(
                "MambaForCausalLM.generate: inputs: expected at least one token, since a "
                "StackState has no logits to go on from, got none"
            )
        cache.begin(state.last, state.logits)
        return cache, state.last, True

    @staticmethod
    def _tokens_seen(state, ids, goes_on, batch):
        """By each row of `ids`, after `state`; empty where that does not say."""
        before = [0] if state is None else getattr(state, "tokens_seen", [])
        new = ids.shape[1] - (1 if goes_on else 0)
        return [seen + new for seen in before for _ in range(batch // len(before))]


def _config_of(folder, language_model):
    """What transformers wants to know of a model, whichever form its config.json has."""
    sizes = language_model.config
    try:
        config = AutoConfig.from_pretrained(folder)
    except ValueError:  # mamba_ssm's form has no model_type
        config = PreTrainedConfig(
            hidden_size=sizes["d_model"],
            num_hidden_layers=sizes["n_layer"],
            state_size=sizes["d_state"],
            conv_kernel=sizes["d_conv"],
        )
    config.vocab_size = sizes["vocab_size"]
    config.use_cache = True
    return config
