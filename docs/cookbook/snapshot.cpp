// A snapshot of a state, and back to it.
#include "recipe.hpp"

using namespace mamba;

int main(int, char** argv) {
  Claims claims;
  const LanguageModel model = LanguageModel::load(argv[1], DType::f32);
  // [begin]
  StackState state = model.make_state(/*batch=*/1);
  read(model, {"And the king said"}, state);

  const StackState snapshot = state.clone();  // as large after a million tokens
  const std::vector<float> first = read(model, {" unto him"}, state);

  state.copy_from(snapshot);  // back; allocates nothing
  const std::vector<float> again = read(model, {" unto him"}, state);
  claims.equal("what follows a snapshot follows it again", first, again);
  // [end]
  const std::vector<float> beyond = read(model, {" unto him"}, state);
  claims.that("without going back it is another text", beyond != first);
  return claims.exit_code();
}
