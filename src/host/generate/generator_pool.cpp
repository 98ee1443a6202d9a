// Rows of a pool, and who holds them.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/generator.hpp>

#include "host/generate/generator_slots.hpp"
#include "host/generate/token_odds.hpp"

namespace mamba {

namespace {

std::int64_t checked_capacity(std::int64_t capacity) {
  check::range("GeneratorPool", "capacity", capacity, 1, std::int64_t{1} << 20);
  return capacity;
}

// A seed as Sample reads it: low half, high half.
Tensor halves_of(std::uint64_t seed) {
  return Tensor::from<std::int32_t>(
      {static_cast<std::int32_t>(static_cast<std::uint32_t>(seed)),
       static_cast<std::int32_t>(static_cast<std::uint32_t>(seed >> 32))},
      {1, 2});
}

}  // namespace

GeneratorSlots::GeneratorSlots(const LanguageModel& of, std::int64_t capacity, Stream* given)
    : model(&of),
      own(given == nullptr ? std::make_unique<Stream>(of.device()) : nullptr),
      stream(given == nullptr ? own.get() : given),
      out(of.device(), checked_capacity(capacity)),
      ahead(of.device().is_cuda()) {
  check::stream("Generator", *stream, of.device());
  synchronize(of.device());  // weights that are still being written
  const std::int64_t vocab = of.config().vocab_size;
  state = of.make_state(capacity);
  logits = Tensor::zeros({capacity, vocab}, DType::f32, of.device());
  seed = Tensor::zeros({capacity, 2}, DType::i32, of.device());
  draws = Tensor::zeros({capacity}, DType::i32, of.device());
  seen = Tensor::zeros({capacity, vocab}, DType::i32, of.device());
  token = Tensor::zeros({capacity}, DType::i32, of.device());
  for (Tensor* values : {&temperature, &top_p, &min_p, &repetition_penalty}) {
    *values = Tensor::zeros({capacity}, DType::f32, of.device());
  }
  top_k = Tensor::zeros({capacity}, DType::i32, of.device());
  list_ = Tensor::zeros({capacity}, DType::i32, of.device());
  used.assign(static_cast<std::size_t>(capacity), false);
  has_bias.assign(static_cast<std::size_t>(capacity), false);
}

std::shared_ptr<GeneratorSlots> GeneratorSlots::another(std::int64_t capacity) const {
  return std::make_shared<GeneratorSlots>(*model, capacity, own ? nullptr : stream);
}

std::int64_t GeneratorSlots::free() const { return std::count(used.begin(), used.end(), false); }

GeneratorSlot::GeneratorSlot(const char* where, std::shared_ptr<GeneratorSlots> of)
    : slots(std::move(of)) {
  const auto place = std::find(slots->used.begin(), slots->used.end(), false);
  if (place == slots->used.end()) {
    throw ArgumentError(where, "capacity", "room for another sequence",
                        fmt::format("{}, all in use", slots->capacity()));
  }
  row = place - slots->used.begin();
  each_state(slots->state, row,
             [&](const TensorView& mine, const TensorView&) { zero(mine, *slots->stream); });
  zero(draws(), *slots->stream);
  zero(seen(), *slots->stream);
  *place = true;
}

void GeneratorSlot::set_options(const SamplingOptions& options) {
  const std::int64_t vocab = slots->model->config().vocab_size;
  for (const std::int32_t id : options.allowed) {
    check::range("SamplingOptions", "allowed", id, 0, vocab - 1);
  }
  for (const auto& [id, value] : options.logit_bias) {
    check::range("SamplingOptions", "logit_bias", id, 0, vocab - 1);
  }
  std::vector<std::pair<Tensor, TensorView>> values;  // all memory before anything changes
  const auto add = [&](auto value, Tensor& of_all) {
    values.emplace_back(Tensor::from<decltype(value)>({value}, {1}), of_all.view().rows(row, 1));
  };
  add(options.temperature, slots->temperature);
  add(static_cast<std::int32_t>(options.top_k), slots->top_k);
  add(options.top_p, slots->top_p);
  add(options.min_p, slots->min_p);
  add(options.repetition_penalty, slots->repetition_penalty);
  values.emplace_back(halves_of(options.seed), slots->seed.view().rows(row, 1));
  const std::vector<float> bias = bias_of(options, vocab);
  if (!bias.empty() && !slots->biased) {
    Tensor none = Tensor::zeros(slots->logits.shape(), DType::f32, slots->logits.device());
    slots->biased = Tensor(slots->logits.shape(), DType::f32, slots->logits.device());
    slots->bias = std::move(none);
  }
  if (!bias.empty()) {
    values.emplace_back(Tensor::from(bias, {1, vocab}), slots->bias.view().rows(row, 1));
  }
  for (const auto& [value, to] : values) copy(value, to, *slots->stream);
  if (bias.empty() && slots->bias) zero(slots->bias.view().rows(row, 1), *slots->stream);
  slots->has_bias[static_cast<std::size_t>(row)] = !bias.empty();
  slots->stream->synchronize();
}

void GeneratorSlot::set_seed(std::uint64_t value) {
  copy(halves_of(value), slots->seed.view().rows(row, 1), *slots->stream);
  slots->stream->synchronize();
}

void GeneratorSlot::set_token(std::int32_t value) {
  const Tensor token = Tensor::from<std::int32_t>({value}, {1});
  copy(token, slots->token.view().rows(row, 1), *slots->stream);
  slots->stream->synchronize();
}

StackState GeneratorSlot::copy_state(Device device) const {
  StackState result;
  for (const MambaState& layer : slots->state.layers) {
    MambaState& one_row = result.layers.emplace_back();
    for (const StateTensor& one : state_tensors) {
      const Tensor& all = layer.*one.tensor;
      one_row.*one.tensor = Tensor(all.shape().with(0, 1), all.dtype(), device);
    }
  }
  each_state(result, 0, [&](const TensorView& mine, const TensorView& other) {
    copy(mine, other, *slots->stream);
  });
  slots->stream->synchronize();
  return result;
}

// ---- GeneratorPool ----------------------------------------------------------------------------

GeneratorPool::GeneratorPool(const LanguageModel& model, std::int64_t capacity)
    : slots_(std::make_shared<GeneratorSlots>(model, capacity)) {}

GeneratorPool::GeneratorPool(const LanguageModel& model, std::int64_t capacity, Stream& stream)
    : slots_(std::make_shared<GeneratorSlots>(model, capacity, &stream)) {}

const std::shared_ptr<GeneratorSlots>& GeneratorPool::slots() const {
  if (!slots_) throw ArgumentError("GeneratorPool", "pool", "a pool", "one that was moved from");
  return slots_;
}

Generator GeneratorPool::make(const SamplingOptions& options) {
  return Generator(std::make_unique<GeneratorSlot>("GeneratorPool::make", slots()), options);
}

Generator GeneratorPool::restore(const std::string& path) {
  return Generator::restore(path,
                            std::make_unique<GeneratorSlot>("GeneratorPool::restore", slots()));
}

std::int64_t GeneratorPool::capacity() const { return slots()->capacity(); }
std::int64_t GeneratorPool::size() const { return slots()->capacity() - slots()->free(); }

}  // namespace mamba
