"""Back to any token of a call."""
from mamba_cpp import LanguageModel, StackSteps

from recipe import MODEL, close, ids_of, read

model = LanguageModel.load(MODEL, "f32")
# [begin]
state = model.make_state(1)
steps = StackSteps()  # receives the states after every token of the call
model.forward(ids_of(["And the king said"]), state, "none", steps)

steps.restore(11, state)  # as after "And the king", its tokens 0 to 11
rewound = read(model, [" rose"], state)

straight = model.make_state(1)
read(model, ["And the king"], straight)
assert close(read(model, [" rose"], straight), rewound)
# [end]
steps.restore(16, state)
whole = model.make_state(1)
read(model, ["And the king said"], whole)
assert close(read(model, [" rose"], whole), read(model, [" rose"], state))
