"""A state that moves between devices."""
import numpy as np
from mamba_cpp import LanguageModel

from recipe import MODEL, any_device, close, read

device = any_device()
# [begin]
here = LanguageModel.load(MODEL, "f32")
there = LanguageModel.load(MODEL, "f32", device)  # "cuda", say

state = here.make_state(1)
read(here, ["And the king said"], state)
moved = state.to(device)  # a copy; the first one stays where it is
back = moved.to("cpu")  # to the bit
half = state.to(dtype="bf16")  # for a model in bf16; ssm stays f32

expected = read(here, [" unto him"], state)
assert np.array_equal(expected, read(here, [" unto him"], back))
assert close(expected, read(there, [" unto him"], moved))
# [end]
assert half.dtype == "bf16" and half.layers[0].ssm.dtype == np.float32
