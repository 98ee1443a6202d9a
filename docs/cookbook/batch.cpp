// Sequences that join a batch and leave it.
#include "recipe.hpp"

using namespace mamba;

int main(int, char** argv) {
  Claims claims;
  const LanguageModel model = LanguageModel::load(argv[1], DType::f32);
  // [begin]
  StackState first = model.make_state(1), second = model.make_state(1), third = model.make_state(1);
  read(model, {"In the beginning"}, first);  // pasts of any lengths: nothing is padded
  read(model, {"And"}, second);
  read(model, {"The words of the wise"}, third);

  StackState batch = StackState::concat({&first, &second, &third});
  const std::vector<float> together = read(model, {" God", " the", " are"}, batch);

  StackState left = batch.gather({1});  // a copy: row 1 leaves
  StackState newcomer = model.make_state(1);
  read(model, {"Blessed"}, newcomer);
  batch.scatter(newcomer, {1});  // its place is taken, the other rows stay
  const std::vector<float> next = read(model, {" saw", " are", " as "}, batch);

  claims.close("in a batch a text is what it is alone", read(model, {" God"}, first),
               row_of(together, 0));
  claims.close("and stays so when others join and leave", read(model, {" saw"}, first),
               row_of(next, 0));
  claims.close("whoever joins goes on from its own past", read(model, {" are"}, newcomer),
               row_of(next, 1));
  // [end]
  read(model, {" the"}, second);
  claims.close("whoever leaves goes on elsewhere", read(model, {" king"}, second),
               read(model, {" king"}, left));
  return claims.exit_code();
}
