// Learns nothing but an initial state: every weight is frozen, and what the model is to talk like
// is put into its memory. The smallest proof that a state is a parameter.
//
//   state_tuning [MODEL] [TEXT FILE]    without them a small random model and a sentence
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include <mamba/mamba.hpp>

namespace {

mamba::LanguageModel small_model() {
  mamba::ModelConfig config;
  config.layer.d_model = 32;
  config.n_layer = 2;
  config.vocab_size = 256;
  return mamba::LanguageModel::random(config, /*seed=*/1);
}

std::string text_of(int argc, char** argv) {
  if (argc < 3) return "Once upon a midnight dreary, while I pondered, weak and weary";
  std::ifstream file(argv[2], std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int argc, char** argv) {
  const mamba::LanguageModel model =
      argc > 1 ? mamba::LanguageModel::load(argv[1], mamba::DType::f32) : small_model();
  const std::string text = text_of(argc, argv).substr(0, 512);
  const std::vector<std::int32_t> bytes = mamba::Tokenizer::bytes().encode(text);
  const auto time = static_cast<std::int64_t>(bytes.size()) - 1;
  const mamba::Tensor ids =
      mamba::Tensor::from(std::vector<std::int32_t>(bytes.begin(), bytes.end() - 1), {1, time});
  const mamba::Tensor targets =
      mamba::Tensor::from(std::vector<std::int32_t>(bytes.begin() + 1, bytes.end()), {1, time});

  // The parameters are the tensors of a state, their gradients those of another of the same shape.
  mamba::StackState initial = model.make_state(1), gradient = model.make_state(1);
  std::vector<mamba::Parameter> parameters;
  for (std::size_t i = 0; i < initial.layers.size(); ++i) {
    const std::string layer = "layers." + std::to_string(i);
    parameters.push_back({layer + ".ssm", initial.layers[i].ssm, gradient.layers[i].ssm, false});
    parameters.push_back({layer + ".conv", initial.layers[i].conv, gradient.layers[i].conv, false});
  }
  mamba::AdamW optimizer(parameters);

  mamba::ModelWeights frozen;  // no gradient is there, so none is computed
  frozen.stack.layers.resize(model.stack().size());
  frozen.stack.norms.resize(model.stack().size());
  const std::int64_t vocab = model.config().vocab_size;
  mamba::Tensor logits({1, time, vocab}, mamba::DType::f32);
  mamba::Tensor dlogits(logits.shape(), mamba::DType::f32);
  mamba::Stream stream;
  mamba::ModelTape tape;
  mamba::ModelOptions options;
  options.tape = &tape;
  mamba::TokenLoss loss;
  double first = 0, last = 0;
  for (int step = 0; step < 100; ++step) {
    mamba::StackState state = initial.clone();
    model.forward(ids, state, logits, stream, options);
    loss.run(logits, targets, time, dlogits, stream);
    gradient.reset();  // nothing is asked of the final state
    model.backward(tape, dlogits, &gradient, frozen, stream);
    optimizer.step(0.05f, stream);
    last = loss.mean(stream) / std::log(2.0);
    if (step == 0) first = last;
    if (step % 20 == 0 || step == 99) std::printf("step %d: %.3f bits a byte\n", step, last);
  }
  std::printf("learned %lld bytes of memory, no weight: %.3f -> %.3f bits a byte\n",
              static_cast<long long>(initial.bytes()), first, last);
  return last < first ? 0 : 1;
}
