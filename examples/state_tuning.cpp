// Learns nothing but an initial state: every weight is frozen, and what the model is to write like
// is put into its memory. The smallest proof that a state is a parameter.
//
//   state_tuning [MODEL]   default: the model that comes with the library
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <mamba/mamba.hpp>

#include "shipped_model.hpp"

namespace {

const std::vector<std::string> ships_log = {
    "\nMonday. Wind north, sea calm, sky clear. Left the harbour at dawn. All crew well.",
    "\nTuesday. Wind west, sea rough, some rain. One sail torn at noon. All crew well.",
    "\nWednesday. Wind west, sea high, sky grey. Pump tested at dawn. All crew well.",
    "\nThursday. Wind south, sea calm, some fog. Two ships seen at noon. All crew well.",
    "\nFriday. Wind south, sea calm, sky clear. Deck washed at dusk. One man ill."};
const std::vector<std::string> unseen = {
    "\nSaturday. Wind east, sea rough, sky grey. Mast mended at noon. All crew well.",
    "\nSunday. Wind north, sea high, some rain. Stores counted at dawn. All crew well."};

struct Tuning {
  const mamba::LanguageModel& model;
  mamba::Stream stream;
  // The parameters are the tensors of a state, their gradients those of another of the same shape.
  mamba::StackState initial = model.make_state(1), gradient = model.make_state(1);
  mamba::LanguageModelWeights frozen;  // no gradient is in it, so none is computed
  mamba::LanguageModelTape tape;
  mamba::TokenLoss loss;

  explicit Tuning(const mamba::LanguageModel& of) : model(of) {
    frozen.stack.layers.resize(model.stack().size());
    frozen.stack.norms.resize(model.stack().size());
  }
  std::vector<mamba::Parameter> parameters() {
    std::vector<mamba::Parameter> all;
    for (std::size_t i = 0; i < initial.layers.size(); ++i) {
      mamba::MambaState &state = initial.layers[i], &d = gradient.layers[i];
      all.push_back({"layers." + std::to_string(i) + ".ssm", state.ssm, d.ssm, false});
      all.push_back({"layers." + std::to_string(i) + ".conv", state.conv, d.conv, false});
    }
    return all;
  }
  // Bits per byte of a line, and the gradient of the initial state if that is to learn.
  double run(const std::string& line, bool learns) {
    const std::vector<std::int32_t> bytes = mamba::Tokenizer::bytes().encode(line);
    const auto time = static_cast<std::int64_t>(bytes.size()) - 1;
    const mamba::Tensor ids = mamba::Tensor::from(bytes, {1, time + 1});
    mamba::Tensor logits({1, time, model.config().vocab_size}, mamba::DType::f32);
    mamba::Tensor dlogits(logits.shape(), mamba::DType::f32);
    mamba::LanguageModelOptions options;
    if (learns) options.tape = &tape;
    mamba::StackState state = initial.clone();
    model.forward(ids.view().columns(0, time), state, mamba::Logits::all(logits), stream, options);
    loss.run(logits, ids.view().columns(1, time), {time, dlogits}, stream);
    gradient.reset();  // nothing is asked of the final state
    if (learns) model.backward(tape, dlogits, &gradient, frozen, stream);
    return loss.mean(stream) / std::log(2.0);
  }
  double mean(const std::vector<std::string>& lines) {
    double sum = 0;
    for (const std::string& line : lines) sum += run(line, false);
    return sum / static_cast<double>(lines.size());
  }
  // The likeliest line.
  std::string write() {
    mamba::StackState state = initial.clone();
    mamba::Tensor logits({1, model.config().vocab_size}, mamba::DType::f32);
    std::string text = "\n";
    do {
      const mamba::Tensor id =
          mamba::Tensor::from<std::int32_t>({static_cast<unsigned char>(text.back())}, {1, 1});
      model.forward(id, state, mamba::Logits::last(logits), stream);
      const float* first = logits.data<float>();
      text += static_cast<char>(std::max_element(first, first + logits.count()) - first);
    } while (text.back() != '\n' && text.size() < 90);
    return text.substr(1);
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : shipped_model().string();
  const auto model = mamba::LanguageModel::load(folder, mamba::DType::f32);
  Tuning tuning(model);
  mamba::AdamW optimizer(tuning.parameters());
  const double before = tuning.mean(unseen);
  std::printf("begins with nothing in memory:   %s\n", tuning.write().c_str());
  for (std::size_t step = 0; step < 50; ++step) {
    tuning.run(ships_log[step % ships_log.size()], true);
    optimizer.step(0.02f, tuning.stream);
    if (step % 10 == 9) {
      std::printf("step %zu: %.3f bits a byte on lines not learned from\n", step + 1,
                  tuning.mean(unseen));
    }
  }
  std::printf("begins with what was learned:    %s\n", tuning.write().c_str());
  const double after = tuning.mean(unseen);
  std::printf("%lld bytes of memory learned, no weight: %.3f -> %.3f bits a byte\n",
              static_cast<long long>(tuning.initial.bytes()), before, after);
  return after < before ? 0 : 1;
}
