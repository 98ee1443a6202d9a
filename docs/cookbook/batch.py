"""Sequences that join a batch and leave it."""
from mamba_cpp import LanguageModel, StackState

from recipe import MODEL, close, read

model = LanguageModel.load(MODEL, "f32")
# [begin]
first, second, third = (model.make_state(1) for _ in range(3))
read(model, ["In the beginning"], first)  # pasts of any lengths: nothing is padded
read(model, ["And"], second)
read(model, ["The words of the wise"], third)

batch = StackState.concat([first, second, third])
together = read(model, [" God", " the", " are"], batch)

left = batch.gather([1])  # a copy: row 1 leaves
newcomer = model.make_state(1)
read(model, ["Blessed"], newcomer)
batch.scatter(newcomer, [1])  # its place is taken, the other rows stay
following = read(model, [" saw", " are", " as "], batch)

assert close(read(model, [" God"], first), together[0])
assert close(read(model, [" saw"], first), following[0])
assert close(read(model, [" are"], newcomer), following[1])
# [end]
read(model, [" the"], second)
assert close(read(model, [" king"], second), read(model, [" king"], left))
