// A small training run, with all that it has to remember between steps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/checkpoint.hpp>
#include <mamba/language_model.hpp>
#include <mamba/loss.hpp>
#include <mamba/optimizer.hpp>

#include "testing.hpp"

namespace mamba::testing {

// Learns to count: ids go up by one, by two in some sequences, and start anew at resets. Truncated
// backpropagation: the state is carried from step to step, its gradient is not.
class TrainingRun {
 public:
  static constexpr std::int64_t batch = 4, time = 16, vocab = 16;

  TrainingRun(DType dtype, Device device, MixerKind mixer = MixerKind::mamba1)
      : model(LanguageModel::random(config(mixer), 1, dtype, device)),
        gradients(zero_gradients(model.config(), device)),
        optimizer(parameters(model, gradients)),
        state(model.make_state(batch)) {
    progress.seed = 7;
    progress.positions.assign(batch, 0);
  }

  static LanguageModelConfig config(MixerKind mixer = MixerKind::mamba1) {
    LanguageModelConfig config;
    config.layer.mixer = mixer;
    if (mixer == MixerKind::mamba2) config.layer.head_dim = 16;
    config.layer.d_model = 32;
    config.layer.d_state = 8;
    config.n_layer = 2;
    config.vocab_size = vocab;
    return config;
  }

  // The mean loss of one step.
  float step() {
    Stream& stream = default_stream(model.device());
    std::vector<std::int32_t> ids, targets, resets;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < time; ++t) {
        const std::int64_t position = progress.positions[static_cast<std::size_t>(b)]++;
        const std::int64_t stride = 1 + b % 2;
        ids.push_back(static_cast<std::int32_t>(position * stride % vocab));
        targets.push_back(static_cast<std::int32_t>((position + 1) * stride % vocab));
        resets.push_back(position % 40 == 0 ? 1 : 0);
      }
    }
    const Device device = model.device();
    const Tensor id_tensor = Tensor::from(ids, {batch, time}).to(device);
    const Tensor target_tensor = Tensor::from(targets, {batch, time}).to(device);
    const Tensor reset = Tensor::from(resets, {batch, time}).to(device);
    Tensor logits({batch, time, vocab}, DType::f32, device);
    Tensor dlogits({batch, time, vocab}, model.dtype(), device);
    LanguageModelOptions options;
    options.tape = &tape;
    options.reset = reset;
    model.forward(id_tensor, state, Logits::all(logits), stream, options);
    loss.run(logits, target_tensor, {batch * time, dlogits}, stream);
    model.backward(tape, dlogits, nullptr, gradients, stream);
    optimizer.step(warmup_cosine(optimizer.steps() + 1, 5, 100, 1e-2f, 1e-3f), stream);
    ++progress.draws;
    return loss.mean(stream);
  }

  void save(const std::string& path) { save_training(path, optimizer, &state, progress); }
  void load(const std::string& path) { progress = load_training(path, optimizer, &state); }

  LanguageModel model;
  LanguageModelWeights gradients;
  AdamW optimizer;
  StackState state;
  LanguageModelTape tape;
  TokenLoss loss;
  TrainingProgress progress;
};

}  // namespace mamba::testing
