"""A snapshot of a state, and back to it."""
import numpy as np
from mamba_cpp import LanguageModel

from recipe import MODEL, read

model = LanguageModel.load(MODEL, "f32")
# [begin]
state = model.make_state(batch=1)
read(model, ["And the king said"], state)

snapshot = state.clone()  # as large after a million tokens
first = read(model, [" unto him"], state)

state.copy_from(snapshot)  # back
again = read(model, [" unto him"], state)
assert np.array_equal(first, again)
# [end]
assert not np.array_equal(first, read(model, [" unto him"], state))
