#include "trainer.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include <mamba/generator.hpp>

namespace {

constexpr const char* where = "train-lm";
constexpr double ln_2 = 0.6931471805599453;

mamba::LanguageModel start_of(const TrainerOptions& options) {
  if (options.start.empty()) {
    return mamba::LanguageModel::random(options.model, options.seed, options.dtype, options.device);
  }
  mamba::LanguageModel model =
      mamba::LanguageModel::load(options.start, options.dtype, options.device);
  if (model.config().vocab_size != 256) {
    throw mamba::Error(where, options.start, "a model of 256 bytes",
                       std::to_string(model.config().vocab_size) + " tokens");
  }
  return model;
}

}  // namespace

Trainer::Trainer(const TrainerOptions& options, const Text& text, Ranks& ranks,
                 CarriedStates& carried)
    : options_(options),
      text_(text),
      ranks_(ranks),
      carried_(carried),
      first_row_(options.batch * ranks.index() / ranks.count()),
      rows_(options.batch * (ranks.index() + 1) / ranks.count() - first_row_),
      stream_(options.device, options.threads),
      model_(start_of(options)),
      gradients_(mamba::zero_gradients(model_.config(), options.device)),
      optimizer_(mamba::parameters(model_, gradients_), options.adamw),
      state_(model_.make_state(rows_)),
      ids_({rows_, options.time}, mamba::DType::i32, options.device),
      targets_(ids_.shape(), mamba::DType::i32, options.device),
      reset_(ids_.shape(), mamba::DType::i32, options.device),
      logits_({rows_, options.time, model_.config().vocab_size}, mamba::DType::f32, options.device),
      dlogits_(logits_.shape(), options.dtype, options.device) {
  progress_.seed = options.seed;
  progress_.positions = spread(text, options.batch);
  if (options.dtype != mamba::DType::f16) progress_.loss_scale.value = 1;
  const mamba::Shape whole = logits_.shape().with(0, options.batch);
  progress_.notes["config"] = mamba::to_json(model_.config());
  progress_.notes["shape"] = whole.to_string();
  progress_.notes["text"] = text.name();
  tape_.stack.recompute = options.recompute;
}

StepResult Trainer::step() {
  const std::int64_t before = steps();
  for (;;) {
    const StepResult result = try_step();
    if (steps() > before) return result;
  }
}

// Does not count where the gradients do not fit f16.
StepResult Trainer::try_step() {
  const Batch batch = next_batch(text_, options_.time, progress_.positions);
  const auto take = [&](const mamba::Tensor& whole, mamba::Tensor& ours) {
    mamba::copy(whole.view().rows(first_row_, rows_), ours, stream_);
  };
  take(batch.ids, ids_);
  take(batch.targets, targets_);
  take(batch.reset, reset_);
  mamba::LanguageModelOptions run;
  run.tape = &tape_;
  run.reset = reset_;
  const float scale = progress_.loss_scale.value;
  model_.forward(ids_, state_, mamba::Logits::all(logits_), stream_, run);
  loss_.run(logits_, targets_, {std::max<std::int64_t>(1, batch.counted), dlogits_, scale},
            stream_);
  model_.backward(tape_, dlogits_, nullptr, gradients_, stream_);
  ranks_.all_reduce(mamba::tensors(gradients_, model_.config()), stream_);
  const float rate = mamba::warmup_cosine(steps() + 1, options_.warmup, options_.steps,
                                          options_.rate, options_.last_rate);
  optimizer_.step(rate, stream_, scale);
  const StepResult result{ranks_.all_reduce(double{loss_.mean(stream_)}),
                          optimizer_.gradient_norm(stream_), rate};
  const bool finite = std::isfinite(result.loss) && std::isfinite(result.norm);
  const bool too_large = std::isfinite(result.loss) && scale > mamba::LossScale::smallest;
  if (!finite && !too_large) {
    const std::string first = optimizer_.first_not_finite(stream_);
    throw mamba::Error(where, "step " + std::to_string(steps()), "a finite loss and gradient",
                       "a loss of " + std::to_string(result.loss) +
                           (first.empty() ? "" : ", first in the gradient of " + first));
  }
  if (options_.dtype == mamba::DType::f16)
    optimizer_.update_loss_scale(progress_.loss_scale, stream_);
  return result;
}

double Trainer::validate(const Text& text, std::int64_t most) {
  const std::int64_t rows = std::min<std::int64_t>(options_.batch, text.size() / 2);
  const std::int64_t length = std::min(text.size() / rows, std::max<std::int64_t>(1, most / rows));
  std::vector<std::int64_t> positions = spread(text, rows);
  mamba::StackState state = model_.make_state(rows);
  mamba::TokenLoss loss;
  double sum = 0, counted = 0;
  for (std::int64_t done = 0; done < length;) {
    const std::int64_t time = std::min(options_.time, length - done);
    const Batch batch = next_batch(text, time, positions);
    const mamba::Tensor ids = there(batch.ids), targets = there(batch.targets);
    const mamba::Tensor reset = there(batch.reset);
    mamba::Tensor logits({rows, time, model_.config().vocab_size}, mamba::DType::f32,
                         options_.device);
    mamba::LanguageModelOptions run;
    run.reset = reset;
    model_.forward(ids, state, mamba::Logits::all(logits), stream_, run);
    if (batch.counted > 0) {
      loss.run(logits, targets, {batch.counted}, stream_);
      sum += loss.mean(stream_) * static_cast<double>(batch.counted);
    }
    counted += static_cast<double>(batch.counted);
    done += time;
  }
  return sum / std::max(1.0, counted) / ln_2;
}

std::string Trainer::sample(const std::string& prompt, std::int64_t count, float temperature) {
  mamba::SamplingOptions sampling;
  sampling.temperature = temperature;
  sampling.seed = options_.seed + static_cast<std::uint64_t>(steps());
  mamba::Generator generator(model_, sampling, stream_);
  const mamba::Tokenizer bytes = mamba::Tokenizer::bytes();
  generator.read(bytes.encode(prompt));
  mamba::GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return bytes.decode(generator.generate(options).tokens);
}

void Trainer::save(const std::string& path) {
  const auto ours = static_cast<std::size_t>(ranks_.index());
  carried_[ours] = state_.to(mamba::Device::cpu(), options_.dtype, stream_);
  stream_.synchronize();
  ranks_.barrier();
  if (ranks_.index() == 0) {
    std::vector<const mamba::StackState*> parts;
    for (const mamba::StackState& part : carried_) parts.push_back(&part);
    const mamba::StackState all = mamba::StackState::concat(parts);
    mamba::save_training(path, optimizer_, &all, progress_);
  }
  ranks_.barrier();
}

void Trainer::load(const std::string& path) {
  const mamba::TrainingProgress ours = progress_;
  const mamba::LanguageModelConfig& config = model_.config();
  mamba::StackState all(config.layer, config.n_layer, options_.batch, options_.dtype);
  const mamba::TrainingProgress found = mamba::load_training(path, optimizer_, &all);
  for (const auto& [key, value] : ours.notes) {
    const auto note = found.notes.find(key);
    const std::string got = note == found.notes.end() ? "nothing" : note->second;
    // Checkpoints of before texts had hashes name theirs by its length alone.
    const bool older = key == "text" && got == std::to_string(text_.size()) + " bytes";
    if (got != value && !older) throw mamba::Error(where, path, key + " " + value, got);
  }
  if (found.positions.size() != ours.positions.size()) {
    throw mamba::Error(where, path, std::to_string(ours.positions.size()) + " positions",
                       std::to_string(found.positions.size()));
  }
  std::vector<std::int32_t> rows;
  for (std::int64_t i = 0; i < rows_; ++i)
    rows.push_back(static_cast<std::int32_t>(first_row_ + i));
  const mamba::StackState mine = all.gather(rows);
  state_ = mine.to(options_.device, options_.dtype);
  progress_ = found;
  progress_.notes["text"] = text_.name();
}
