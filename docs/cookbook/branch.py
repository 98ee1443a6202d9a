"""Several futures of one past."""
from mamba_cpp import LanguageModel

from recipe import MODEL, close, read

model = LanguageModel.load(MODEL, "f32")
# [begin]
trunk = model.make_state(1)
read(model, ["And the king"], trunk)

branches = trunk.repeat(3)  # the past is read once
read(model, [" said", " went", " rose"], branches)

went = branches.gather([1])  # one of them out of the batch
alone = read(model, [" up"], went)

read(model, [" went"], trunk)  # the trunk has not moved meanwhile
direct = read(model, [" up"], trunk)
assert close(direct, alone)
# [end]
