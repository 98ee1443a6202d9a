#include <mamba/generator.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <mamba/check.hpp>

#include "detail/philox.hpp"
#include "host/core/finished.hpp"
#include "host/generate/generator_slots.hpp"
#include "host/model/model_checks.hpp"

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
  for (const auto& [id, value] : logit_bias) {
    if (!std::isfinite(value)) {
      throw ArgumentError("SamplingOptions", "logit_bias",
                          fmt::format("a finite value for token {}", id), fmt::format("{}", value));
    }
  }
  if (temperature == 0 && (top_k != 0 || top_p != 1 || min_p != 0)) {
    throw ArgumentError("SamplingOptions", "temperature",
                        "above 0 where top_k, top_p or min_p is given", "0 (greedy)");
  }
}

namespace {

std::unique_ptr<GeneratorSlot> slot_alone(const LanguageModel& model, Stream* stream) {
  return std::make_unique<GeneratorSlot>("Generator",
                                         std::make_shared<GeneratorSlots>(model, 1, stream));
}

Tensor column(const std::vector<std::int32_t>& values) {
  return Tensor::from(values, {static_cast<std::int64_t>(values.size())});
}

}  // namespace

// ---- one sequence -----------------------------------------------------------------------------

Generator::Generator(const LanguageModel& model, const SamplingOptions& options)
    : Generator(slot_alone(model, nullptr), options) {}

Generator::Generator(const LanguageModel& model, const SamplingOptions& options, Stream& stream)
    : Generator(slot_alone(model, &stream), options) {}

Generator::Generator(std::unique_ptr<GeneratorSlot> slot, const SamplingOptions& options)
    : slot_(std::move(slot)), options_(options) {
  options.check();
  slot_->set_options(options);
}

Generator::~Generator() = default;
Generator::Generator(Generator&&) noexcept = default;
Generator& Generator::operator=(Generator&&) noexcept = default;

GeneratorSlot& Generator::slot() const {
  if (!slot_)
    throw ArgumentError("Generator", "generator", "a generator", "one that was moved from");
  return *slot_;
}

const LanguageModel& Generator::model() const { return *slot().slots->model; }
Stream& Generator::stream() const { return *slot().slots->stream; }

void Generator::read(const Ids& ids) { read({this}, {ids}); }

std::int32_t Generator::next() {
  const Chosen chosen = next(Group{this}).front();
  if (chosen.error) std::rethrow_exception(chosen.error);
  return chosen.token;
}

Generated Generator::generate(const GenerateOptions& options) {
  Generated result = std::move(generate({this}, {options}).front());
  if (result.error) std::rethrow_exception(result.error);
  return result;
}

// What Sample chooses it marks itself; a prompt is marked here.
void Generator::mark_seen(const Ids& ids) {
  Ids distinct = ids;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  if (distinct.empty()) return;
  const Tensor marks = Tensor::from(Ids(distinct.size(), 1), {column(distinct).count(), 1});
  const Tensor host_rows = column(distinct);  // until the copy is done
  const Tensor rows = host_rows.to(model().device(), DType::i32, stream());
  const Tensor ones = marks.to(model().device(), DType::i32, stream());
  CopyRows op;
  op.from = ones;
  op.to = slot().seen().reshape({model().config().vocab_size, 1});
  op.to_rows = rows;
  run(op, stream());
  stream().synchronize();
}

void Generator::push(std::int32_t token) {
  if (recent_.size() == longest_stop) recent_.erase(recent_.begin());
  recent_.push_back(token);
  pending_ = true;
}

StackState Generator::state() {
  feed_pending();
  return slot().copy_state(model().device());
}

ConstTensorView Generator::logits() {
  feed_pending();
  stream().synchronize();
  return slot().logits();
}

void Generator::continue_from(const Ids& ids, const StackState& state, ConstTensorView logits) {
  constexpr const char* where = "Generator::continue_from";
  if (tokens_seen_ != 0 || pending_) {
    throw ArgumentError(where, "tokens_seen", "0", fmt::format("{}", tokens_seen_));
  }
  const std::int64_t vocab = model().config().vocab_size;
  check::range(where, "ids (their number)", static_cast<std::int64_t>(ids.size()), 1, INT64_MAX);
  for (const std::int32_t id : ids) check::range(where, "ids", id, 0, vocab - 1);
  const Device from = logits.device();
  check::is(where, "logits", logits, {1, vocab}, DType::f32, from);
  check_state(where, model().stack(), state, 1, from);
  synchronize(model().device());
  if (from != model().device()) synchronize(from);
  set_state(state, logits);
  if (from != model().device()) stream().synchronize();  // what they are read from may go
  mark_seen(ids);
  tokens_seen_ = static_cast<std::int64_t>(ids.size());
}

void Generator::set_state(const StackState& state, ConstTensorView logits) {
  if (model().device().is_cpu() && logits.device().is_cuda()) {
    // Of a GPU's memory a stream of the CPU can copy nothing.
    const Tensor near = on_host(logits);
    return set_state(state.to(Device::cpu()), near);
  }
  for (std::size_t i = 0; i < state.layers.size(); ++i) {
    MambaState& layer = slot().slots->state.layers[i];
    for (const StateTensor& one : state_tensors) {
      Tensor& to = layer.*one.tensor;
      copy(state.layers[i].*one.tensor, to.view().rows(slot().row, 1), stream());
    }
  }
  copy(logits, slot().logits(), stream());
}

// ---- forks ------------------------------------------------------------------------------------

void Generator::copy_to(Generator& other) const {
  const GeneratorSlot& to = other.slot();
  slot().each_state(to.slots->state, to.row, [&](const TensorView& mine, const TensorView& its) {
    copy(mine, its, stream());
  });
  copy(slot().logits(), to.logits(), stream());
  copy(slot().draws(), to.draws(), stream());
  copy(slot().seen(), to.seen(), stream());
  other.recent_ = recent_;
  other.text_ = text_;
  other.after_stop_ = after_stop_;
  other.tokens_seen_ = tokens_seen_;
}

Generator Generator::fork() { return std::move(fork(1).front()); }

std::vector<Generator> Generator::fork(std::int64_t k) {
  check::range("Generator::fork", "k", k, 0, std::int64_t{1} << 20);
  std::vector<Generator> forks;
  if (k == 0) return forks;
  feed_pending();
  const std::shared_ptr<GeneratorSlots>& own = slot().slots;
  const auto slots = own->free() >= k ? own : own->another(k);
  for (std::int64_t i = 0; i < k; ++i) {
    SamplingOptions options = options_;
    if (i > 0) {  // of the seed, the place and the number of the fork: no two streams meet
      const auto words = detail::philox(options_.seed, {static_cast<std::uint32_t>(tokens_seen_),
                                                        static_cast<std::uint32_t>(i), 1, 0});
      options.seed = std::uint64_t{words[0]} << 32 | words[1];
    }
    forks.push_back(Generator(std::make_unique<GeneratorSlot>("Generator::fork", slots), options));
    copy_to(forks.back());
  }
  stream().synchronize();
  return forks;
}

void Generator::reseed(std::uint64_t seed) {
  options_.seed = seed;
  slot().set_seed(seed);
}

void Generator::set_options(const SamplingOptions& options) {
  options.check();
  SamplingOptions kept = options;  // what may run out of memory comes first
  slot().set_options(options);
  options_ = std::move(kept);
}

// ---- several ----------------------------------------------------------------------------------

// By rows of the pool, checked.
Generator::Group Generator::in_order(const char* where, const Group& group) {
  Group sorted = group;
  for (const Generator* member : group) {
    if (member == nullptr || !member->slot_) {
      throw ArgumentError(where, "group", "generators", "none");
    }
    if (member->slot().slots != group.front()->slot().slots) {
      throw ArgumentError(where, "group", "generators of one pool", "one of another pool");
    }
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Generator* a, const Generator* b) { return a->slot().row < b->slot().row; });
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    throw ArgumentError(where, "group", "every generator once", "one twice");
  }
  return sorted;
}

namespace {

// The rows of a group in order.
template <class Group, class Row>
SlotRows rows_of(GeneratorSlots& slots, const Group& group, Row row) {
  std::vector<std::int32_t> rows;
  rows.reserve(group.size());
  for (const auto* member : group) rows.push_back(static_cast<std::int32_t>(row(*member)));
  return slots.rows_of(rows);
}

}  // namespace

void Generator::feed(const Group& group, ConstTensorView ids) {
  GeneratorSlots& slots = *group.front()->slot().slots;
  slots.feed(rows_of(slots, group, [](const Generator& g) { return g.slot().row; }), ids);
  for (Generator* member : group) {
    member->tokens_seen_ += ids.dim(1);
    member->lent_ = false;
  }
}

void Generator::feed_pending(const Group& group) {
  Group waiting;
  std::copy_if(group.begin(), group.end(), std::back_inserter(waiting),
               [](const Generator* member) { return member->pending_; });
  if (waiting.empty()) return;
  GeneratorSlots& slots = *waiting.front()->slot().slots;
  slots.feed_chosen(rows_of(slots, waiting, [](const Generator& g) { return g.slot().row; }));
  for (Generator* member : waiting) {
    member->pending_ = false;
    member->lent_ = false;
    ++member->tokens_seen_;
  }
}

// Everyone reads what the shortest prompt has left, which then leaves; and so on with the others.
void Generator::read(const Group& group, const std::vector<Ids>& prompts) {
  constexpr const char* where = "Generator::read";
  if (group.size() != prompts.size()) {
    throw ArgumentError(where, "prompts", fmt::format("{}", group.size()),
                        fmt::format("{}", prompts.size()));
  }
  if (group.empty()) return;
  const Group sorted = in_order(where, group);
  std::vector<const Ids*> texts;  // in the order of `reading`
  Group reading;
  for (Generator* member : sorted) {
    const auto place = std::find(group.begin(), group.end(), member) - group.begin();
    const Ids& prompt = prompts[static_cast<std::size_t>(place)];
    for (const std::int32_t id : prompt) {
      check::range(where, "ids", id, 0, member->model().config().vocab_size - 1);
    }
    if (prompt.empty()) continue;
    reading.push_back(member);
    texts.push_back(&prompt);
  }
  feed_pending(reading);
  for (std::size_t i = 0; i < reading.size(); ++i) reading[i]->mark_seen(*texts[i]);
  for (std::size_t done = 0; !reading.empty();) {
    std::size_t count = SIZE_MAX;
    for (const Ids* text : texts) count = std::min(count, text->size() - done);
    Ids piece;
    for (const Ids* text : texts) {
      const auto first = text->begin() + static_cast<std::ptrdiff_t>(done);
      piece.insert(piece.end(), first, first + static_cast<std::ptrdiff_t>(count));
    }
    const Tensor host_ids = Tensor::from(
        piece, {static_cast<std::int64_t>(reading.size()), static_cast<std::int64_t>(count)});
    const Tensor ids =
        host_ids.to(sorted.front()->model().device(), DType::i32, sorted.front()->stream());
    feed(reading, ids);
    sorted.front()->stream().synchronize();
    done += count;
    for (std::size_t i = reading.size(); i-- > 0;) {
      if (texts[i]->size() > done) continue;
      reading.erase(reading.begin() + static_cast<std::ptrdiff_t>(i));
      texts.erase(texts.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
}

void Generator::check_read(const char* where, const Group& group) {
  for (const Generator* member : group) {
    if (member->tokens_seen_ == 0 && !member->pending_) {
      throw ArgumentError(where, "prompt", "at least one token", "none");
    }
  }
}

// `group` is in order.
void Generator::choose(const Group& group) {
  GeneratorSlots& slots = *group.front()->slot().slots;
  slots.out.forget();
  const auto pending = [](const Generator* member) { return member->pending_; };
  if (slots.records() && std::all_of(group.begin(), group.end(), pending)) {
    step(group);
    return;
  }
  feed_pending(group);
  slots.choose(rows_of(slots, group, [](const Generator& g) { return g.slot().row; }));
  slots.out.send(slots.token, *slots.stream);
}

// The tokens that the device has chosen go through the model, whether or not the host knows them.
void Generator::step(const Group& group) {
  GeneratorSlots& slots = *group.front()->slot().slots;
  slots.step(rows_of(slots, group, [](const Generator& g) { return g.slot().row; }));
  slots.out.send(slots.token, *slots.stream);
  for (Generator* member : group) {
    member->pending_ = false;
    member->lent_ = false;
    ++member->tokens_seen_;
  }
}

std::vector<Chosen> Generator::next(const Group& group) {
  constexpr const char* where = "Generator::next";
  if (group.empty()) return {};
  const Group sorted = in_order(where, group);
  check_read(where, group);
  std::vector<Chosen> chosen(group.size());  // memory for the tokens before there are any
  for (Generator* member : group) member->recent_.reserve(longest_stop);
  choose(sorted);
  GeneratorSlots& slots = *group.front()->slot().slots;
  const std::int32_t* tokens = slots.out.receive();
  std::exception_ptr error;
  for (std::size_t i = 0; i < group.size(); ++i) {
    const std::int32_t token = tokens[group[i]->slot().row];
    if (token >= 0) {
      group[i]->push(token);
      chosen[i].token = token;
    } else {
      if (!error) error = slots.no_token();
      chosen[i].error = error;
    }
  }
  return chosen;
}

}  // namespace mamba
