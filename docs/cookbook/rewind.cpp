// Back to any token of a call.
#include "recipe.hpp"

using namespace mamba;

int main(int, char** argv) {
  Claims claims;
  const LanguageModel model = LanguageModel::load(argv[1], DType::f32);
  Stream& stream = default_stream();
  // [begin]
  StackState state = model.make_state(1);
  StackSteps steps;  // receives the states after every token of the call
  LanguageModelOptions options;
  options.steps = &steps;
  model.forward(ids_of({"And the king said"}), state, Logits::none(), stream, options);

  steps.restore(/*t=*/11, state, stream);  // as after "And the king", its tokens 0 to 11
  const std::vector<float> rewound = read(model, {" rose"}, state);

  StackState straight = model.make_state(1);
  read(model, {"And the king"}, straight);
  claims.close("a rewound state has not seen what came after", read(model, {" rose"}, straight),
               rewound);
  // [end]
  steps.restore(16, state, stream);
  StackState all = model.make_state(1);
  read(model, {"And the king said"}, all);
  claims.close("and it can go forward again", read(model, {" rose"}, all),
               read(model, {" rose"}, state));
  return claims.exit_code();
}
