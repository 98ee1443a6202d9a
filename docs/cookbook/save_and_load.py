"""A state in a file, and as bytes to send."""
import pathlib
import pickle
import tempfile

import numpy as np
from mamba_cpp import LanguageModel, load_state, save_state

from recipe import MODEL, read

model = LanguageModel.load(MODEL, "f32")
folder = tempfile.TemporaryDirectory()
path = pathlib.Path(folder.name) / "state.safetensors"
# [begin]
state = model.make_state(1)
read(model, ["And the king said"], state)

notes = {"text": "And the king said"}
save_state(path, state, fingerprint=model.fingerprint(), notes=notes)  # whole or not at all

saved = load_state(path)  # in another process, say
assert saved.fingerprint == model.fingerprint()  # a state of this model
received = load_state(save_state(state)).state  # the same as bytes, to send
pickled = pickle.loads(pickle.dumps(state))

expected = read(model, [" unto him"], state)
for again in [saved.state, received, pickled]:
    assert np.array_equal(expected, read(model, [" unto him"], again))
# [end]
folder.cleanup()
