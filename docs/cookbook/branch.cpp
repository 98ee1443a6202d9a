// Several futures of one past.
#include "recipe.hpp"

using namespace mamba;

int main(int, char** argv) {
  Claims claims;
  const LanguageModel model = LanguageModel::load(argv[1], DType::f32);
  // [begin]
  StackState trunk = model.make_state(1);
  read(model, {"And the king"}, trunk);

  StackState branches = trunk.repeat(3);  // the past is read once
  read(model, {" said", " went", " rose"}, branches);

  StackState went = branches.gather({1});  // one of them out of the batch
  const std::vector<float> alone = read(model, {" up"}, went);

  read(model, {" went"}, trunk);  // the trunk has not moved meanwhile
  const std::vector<float> direct = read(model, {" up"}, trunk);
  claims.close("a branch goes on as if it had been alone", direct, alone);
  // [end]
  return claims.exit_code();
}
