// A state in a file, and as bytes to send.
#include "recipe.hpp"

using namespace mamba;

int main(int, char** argv) {
  Claims claims;
  const LanguageModel model = LanguageModel::load(argv[1], DType::f32);
  const std::string path = "cookbook_state.safetensors";
  // [begin]
  StackState state = model.make_state(1);
  read(model, {"And the king said"}, state);

  StateMetadata metadata;
  metadata.fingerprint = model.fingerprint();  // whose state this is
  metadata.notes["text"] = "And the king said";
  save(path, state, metadata);  // written whole or not at all

  SavedState saved = load_state(path);  // in another process, say
  claims.that("it is a state of this model", saved.metadata.fingerprint == model.fingerprint());
  const Bytes bytes = save(state, metadata);  // the same, to send
  StackState received = load_state(bytes).state;

  const std::vector<float> expected = read(model, {" unto him"}, state);
  claims.equal("from a file a text goes on to the bit", expected,
               read(model, {" unto him"}, saved.state));
  claims.equal("and so it does from bytes", expected, read(model, {" unto him"}, received));
  // [end]
  std::remove(path.c_str());
  return claims.exit_code();
}
