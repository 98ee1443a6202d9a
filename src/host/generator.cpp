#include <mamba/generator.hpp>

#include <fmt/format.h>

#include <algorithm>

#include <mamba/check.hpp>

namespace mamba {

void SamplingOptions::check() const {
  const auto in = [](const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high)) {
      throw ArgumentError("SamplingOptions", name, fmt::format("{} to {}", low, high),
                          fmt::format("{}", value));
    }
  };
  in("temperature", temperature, 0, 1e6);
  in("top_k", static_cast<double>(top_k), 0, 1 << 30);
  in("top_p", top_p, 0, 1);
  in("min_p", min_p, 0, 1);
  in("repetition_penalty", repetition_penalty, 1e-3, 1e3);
  if (temperature == 0 && (top_k != 0 || top_p != 1 || min_p != 0)) {
    throw ArgumentError("SamplingOptions", "temperature",
                        "above 0 where top_k, top_p or min_p is given", "0 (greedy)");
  }
}

namespace {

// As Sample reads it: low half, high half.
Tensor seed_tensor(std::uint64_t seed) {
  return Tensor::from<std::int32_t>(
      {static_cast<std::int32_t>(static_cast<std::uint32_t>(seed)),
       static_cast<std::int32_t>(static_cast<std::uint32_t>(seed >> 32))},
      {1, 2});
}

}  // namespace

Generator::Generator(const LanguageModel& model, const SamplingOptions& options)
    : Generator(model, options, default_stream(model.device())) {}

Generator::Generator(const LanguageModel& model, const SamplingOptions& options, Stream& stream)
    : model_(&model),
      stream_(&stream),
      options_(options),
      state_(model.make_state(1)),
      logits_(Tensor::zeros({1, model.config().vocab_size}, DType::f32, model.device())),
      seed_(seed_tensor(options.seed).to(model.device())),
      draws_(Tensor::zeros({1}, DType::i32, model.device())),
      seen_(Tensor::zeros({1, model.config().vocab_size}, DType::i32, model.device())),
      token_({1}, DType::i32, model.device()) {
  options.check();
}

void Generator::read(const std::vector<std::int32_t>& ids) {
  for (const std::int32_t id : ids) {
    check::range("Generator::read", "ids", id, 0, model_->config().vocab_size - 1);
  }
  if (ids.empty()) return;
  settle();
  const auto count = static_cast<std::int64_t>(ids.size());
  const Tensor host = Tensor::from(ids, {1, count});
  feed(host.to(model_->device(), DType::i32, *stream_));
  mark_seen(ids);
}

void Generator::feed(ConstTensorView ids) {
  model_->forward(ids, state_, logits_, *stream_);
  stream_->synchronize();
  tokens_seen_ += ids.dim(1);
}

// What Sample chooses it marks itself; a prompt is marked here, on the host.
void Generator::mark_seen(const std::vector<std::int32_t>& ids) {
  Tensor copied;
  if (seen_.device().is_cuda()) {
    copied = seen_.to(Device::cpu(), DType::i32, *stream_);
    stream_->synchronize();
  }
  Tensor& flags = copied ? copied : seen_;
  for (const std::int32_t id : ids) flags.data<std::int32_t>()[id] = 1;
  if (copied) copy(copied, seen_, *stream_);
  stream_->synchronize();
}

void Generator::settle() {
  if (!pending_) return;
  feed(token_.view().reshape({1, 1}));
  pending_ = false;
}

std::int32_t Generator::next() {
  settle();
  if (tokens_seen_ == 0) {
    throw ArgumentError("Generator::next", "prompt", "at least one token", "none");
  }
  Sample sample;
  sample.logits = logits_;
  sample.seed = seed_;
  sample.draws = draws_;
  sample.seen = seen_;
  sample.ids = token_;
  sample.temperature = options_.temperature;
  sample.top_k = options_.top_k;
  sample.top_p = options_.top_p;
  sample.min_p = options_.min_p;
  sample.repetition_penalty = options_.repetition_penalty;
  run(sample, *stream_);
  const Tensor token = token_.to(Device::cpu(), DType::i32, *stream_);
  stream_->synchronize();
  if (recent_.size() == longest_stop) recent_.erase(recent_.begin());
  recent_.push_back(*token.data<std::int32_t>());
  pending_ = true;
  return recent_.back();
}

bool Generator::completes(const GenerateOptions& options) const {
  if (options.stop.empty()) return false;
  const std::string text = options.tokenizer->decode(recent_);
  return std::any_of(options.stop.begin(), options.stop.end(), [&](const std::string& stop) {
    return text.size() >= stop.size() &&
           text.compare(text.size() - stop.size(), stop.size(), stop) == 0;
  });
}

Generated Generator::generate(const GenerateOptions& options) {
  constexpr const char* where = "Generator::generate";
  check::range(where, "max_tokens", options.max_tokens, 0, INT64_MAX);
  for (const std::string& stop : options.stop) {
    check::range(where, "stop (bytes)", static_cast<std::int64_t>(stop.size()), 1, longest_stop);
  }
  if (!options.stop.empty() && options.tokenizer == nullptr) {
    throw ArgumentError(where, "tokenizer", "one, to find stop strings with", "none");
  }
  const std::vector<std::int32_t>& eos = model_->config().eos_token_ids;
  Generated result;
  while (static_cast<std::int64_t>(result.tokens.size()) < options.max_tokens) {
    const std::int32_t token = next();
    result.tokens.push_back(token);
    if (options.on_token && !options.on_token(token)) {
      result.reason = StopReason::callback;
      break;
    }
    if (!options.ignore_eos && std::find(eos.begin(), eos.end(), token) != eos.end()) {
      result.reason = StopReason::eos;
      break;
    }
    if (completes(options)) {
      result.reason = StopReason::stop_string;
      break;
    }
  }
  return result;
}

Generator Generator::fork() {
  settle();
  Generator copy(*model_, options_, *stream_);
  copy.state_ = state_.clone(*stream_);
  copy.logits_ = logits_.clone(*stream_);
  copy.draws_ = draws_.clone(*stream_);
  copy.seen_ = seen_.clone(*stream_);
  copy.recent_ = recent_;
  copy.tokens_seen_ = tokens_seen_;
  stream_->synchronize();
  return copy;
}

Generator Generator::fork(std::uint64_t seed) {
  Generator copy = fork();
  copy.options_.seed = seed;
  copy.seed_ = seed_tensor(seed).to(model_->device());
  return copy;
}

const StackState& Generator::state() {
  settle();
  return state_;
}

const Tensor& Generator::logits() {
  settle();
  return logits_;
}

}  // namespace mamba
