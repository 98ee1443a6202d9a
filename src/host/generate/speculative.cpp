#include <mamba/speculative.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include <mamba/check.hpp>

#include "detail/philox.hpp"
#include "host/core/finished.hpp"
#include "host/generate/generator_slots.hpp"
#include "host/generate/token_odds.hpp"

namespace mamba {
namespace {

using Ids = Generator::Ids;

constexpr const char* where = "Speculation";

// What a random number is for. Sample has the counters with a 0 there.
enum class Purpose : std::uint32_t { proposal = 2, judgement, replacement };

double uniform_at(std::uint64_t seed, std::int64_t place, Purpose purpose) {
  const auto at = static_cast<std::uint64_t>(place);
  return detail::uniform(
      detail::philox(seed, {static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at >> 32), 0,
                            static_cast<std::uint32_t>(purpose)}));
}

void check_alone(const char* name, const GeneratorSlot& slot) {
  if (slot.slots->capacity() == 1) return;
  throw ArgumentError(where, name, "a generator with a pool of its own",
                      fmt::format("one in a pool of {}", slot.slots->capacity()));
}

// One more token through the model of a generator that is alone, its state afterwards kept.
void feed(const GeneratorSlot& slot, const Ids& tokens, const Logits& logits, StackSteps& steps) {
  GeneratorSlots& slots = *slot.slots;
  const Tensor host_ids = Tensor::from(tokens, {1, static_cast<std::int64_t>(tokens.size())});
  const Tensor ids = host_ids.to(slots.model->device(), DType::i32, *slots.stream);
  LanguageModelOptions options;
  options.steps = &steps;
  slots.model->forward(ids, slots.state, logits, *slots.stream, options);
  slots.stream->synchronize();
}

// The largest logit of each row.
Ids best_of(const ConstTensorView& logits, Stream& stream) {
  Tensor ids({logits.dim(0)}, DType::i32, logits.device());
  Sample sample;
  sample.logits = logits;
  sample.ids = ids;
  run(sample, stream);
  const Tensor host = on_host(ids, stream);
  return Ids(host.data<std::int32_t>(), host.data<std::int32_t>() + host.count());
}

}  // namespace

Speculation::Speculation(Generator& target, Generator& draft, std::int64_t proposals)
    : target_(&target), draft_(&draft), most_(proposals) {
  check::range(where, "proposals", proposals, 1, 64);
  const std::int64_t vocab = target.model().config().vocab_size;
  const std::int64_t other = draft.model().config().vocab_size;
  if (vocab != other) {
    throw ArgumentError(where, "draft", fmt::format("a model with {} tokens", vocab),
                        fmt::format("one with {}", other));
  }
  if (&target == &draft) throw ArgumentError(where, "draft", "another generator", "the target");
  check_alone("target", target.slot());
  check_alone("draft", draft.slot());
  before_ = target.model().make_state(1);
  draft_before_ = draft.model().make_state(1);
  judged_ = Tensor({1, proposals + 1, vocab}, DType::f32, target.model().device());
  check();
  draft_steps_.resize(static_cast<std::size_t>(proposals) + 1);
}

void Speculation::check() const {
  if (!judged_) throw ArgumentError(where, "speculation", "one", "one that was moved from");
  if (target_->tokens_seen() == draft_->tokens_seen()) return;
  throw ArgumentError(where, "draft", fmt::format("{} tokens seen", target_->tokens_seen()),
                      fmt::format("{}", draft_->tokens_seen()));
}

void Speculation::read(const Ids& ids) {
  target_->read(ids);
  draft_->read(ids);
}

bool Speculation::greedy() const {
  const auto plain = [](const SamplingOptions& options) {
    return options.temperature == 0 && options.repetition_penalty == 1 &&
           options.logit_bias.empty() && options.allowed.empty();
  };
  return plain(target_->options_) && plain(draft_->options_);
}

// The draft's next tokens after `last`, which it has not seen. odds_ becomes what each was drawn
// from, and draft_steps_ the states after `last` and after all but the last of them.
Ids Speculation::propose(std::int32_t last) {
  const GeneratorSlot& slot = draft_->slot();
  Stream& stream = draft_->stream();
  Ids proposals;
  odds_.clear();
  Tensor seen = on_host(slot.seen(), stream);
  const std::int64_t place = target_->tokens_seen_ + 1;
  for (std::int64_t i = 0; i < most_; ++i) {
    feed(slot, {i == 0 ? last : proposals.back()}, Logits::last(slot.logits()),
         draft_steps_[static_cast<std::size_t>(i)]);
    if (greedy()) {
      proposals.push_back(best_of(slot.logits(), stream).front());
      continue;
    }
    const Tensor logits = on_host(slot.logits(), stream);
    odds_.push_back(token_odds(logits.data<float>(), logits.count(), seen.data<std::int32_t>(),
                               draft_->options_, 0));
    proposals.push_back(
        draw(odds_.back(), uniform_at(target_->options_.seed, place + i, Purpose::proposal)));
    seen.data<std::int32_t>()[proposals.back()] = 1;
  }
  return proposals;
}

// What becomes of the proposals, given the target's logits before each and after the last: those
// that are taken, and one token more.
Ids Speculation::judge(const Ids& proposals) {
  Stream& stream = target_->stream();
  const std::int64_t vocab = judged_.dim(2);
  const ConstTensorView rows = judged_.view().reshape({most_ + 1, vocab});
  Ids result;
  if (greedy()) {
    for (const std::int32_t best : best_of(rows, stream)) {
      const std::size_t at = result.size();
      result.push_back(best);
      if (at == proposals.size() || proposals[at] != best) break;
    }
    return result;
  }
  const Tensor logits = on_host(rows, stream);
  Tensor seen = on_host(target_->slot().seen(), stream);
  const std::uint64_t seed = target_->options_.seed;
  for (std::size_t i = 0;; ++i) {
    const std::int64_t place = target_->tokens_seen_ + 1 + static_cast<std::int64_t>(i);
    std::vector<double> odds =
        token_odds(logits.data<float>() + static_cast<std::int64_t>(i) * vocab, vocab,
                   seen.data<std::int32_t>(), target_->options_, static_cast<std::int64_t>(i));
    if (i < proposals.size()) {
      const auto token = static_cast<std::size_t>(proposals[i]);
      const std::vector<double>& drawn_from = odds_[i];
      if (uniform_at(seed, place, Purpose::judgement) * drawn_from[token] < odds[token]) {
        result.push_back(proposals[i]);
        seen.data<std::int32_t>()[token] = 1;
        continue;
      }
      std::vector<double> rest(odds.size());
      double left = 0;
      for (std::size_t id = 0; id < rest.size(); ++id) {
        rest[id] = std::max(0.0, odds[id] - drawn_from[id]);
        left += rest[id];
      }
      if (left > 0) odds = std::move(rest);  // 0: p and q differ by rounding alone
    }
    result.push_back(draw(odds, uniform_at(seed, place, Purpose::replacement)));
    return result;
  }
}

// Puts both generators back to where they were, unless forget() is called before it ends.
struct Speculation::Undo {
  Speculation& of;
  Ids recent, draft_recent;
  bool pending, draft_pending;
  std::int64_t seen, draft_seen;
  std::int32_t first = -1;  // the target's first token, chosen by itself
  bool wanted = true;

  explicit Undo(Speculation& speculation)
      : of(speculation),
        recent(of.target_->recent_),
        draft_recent(of.draft_->recent_),
        pending(of.target_->pending_),
        draft_pending(of.draft_->pending_),
        seen(of.target_->tokens_seen_),
        draft_seen(of.draft_->tokens_seen_) {
    if (!pending) return;  // then no state is touched
    of.before_.copy_from(of.target_->slot().slots->state, of.target_->stream());
    of.draft_before_.copy_from(of.draft_->slot().slots->state, of.draft_->stream());
  }
  Undo(const Undo&) = delete;
  Undo& operator=(const Undo&) = delete;
  void forget() { wanted = false; }

  ~Undo() {
    if (!wanted) return;
    const auto back = [](Generator& generator, Ids& ids, bool was_pending, std::int64_t had_seen) {
      generator.recent_ = std::move(ids);
      generator.pending_ = was_pending;
      generator.tokens_seen_ = had_seen;
    };
    back(*of.target_, recent, pending, seen);
    back(*of.draft_, draft_recent, draft_pending, draft_seen);
    try {
      GeneratorSlots& slots = *of.target_->slot().slots;
      if (first >= 0) slots.unchoose(0, first, of.target_->options_);
      if (!pending) return;
      slots.state.copy_from(of.before_, of.target_->stream());
      of.draft_->slot().slots->state.copy_from(of.draft_before_, of.draft_->stream());
      for (Generator* generator : {of.target_, of.draft_}) {
        generator->slot().set_token(generator->recent_.back());
      }
    } catch (...) {  // the device is lost, and both generators with it
    }
  }
};

// A token chosen without help, so that there is one that the models have not seen.
std::int32_t Speculation::first() {
  Undo undo(*this);
  const std::int32_t token = target_->next();
  undo.first = token;
  draft_->push(token);
  draft_->lent_ = true;
  draft_->mark_seen({token});
  draft_->slot().set_token(token);
  ++counts_.runs;
  undo.forget();
  return token;
}

void Speculation::advance(const Take& take) {
  check();
  if (!target_->pending_) {
    take(first(), target_->slot().logits());
    return;
  }
  const std::int32_t last = target_->recent_.back();
  Undo undo(*this);
  target_->lent_ = true;
  draft_->lent_ = true;
  const Ids proposals = propose(last);
  Ids judged{last};
  judged.insert(judged.end(), proposals.begin(), proposals.end());
  feed(target_->slot(), judged, Logits::all(judged_), steps_);
  const Ids tokens = judge(proposals);
  if (tokens.size() >
      proposals.size()) {  // all are taken, and the last of them the draft has not read
    feed(draft_->slot(), {proposals.back()}, Logits::none(), draft_steps_.back());
  }
  ++counts_.runs;
  counts_.proposed += most_;
  counts_.accepted += static_cast<std::int64_t>(tokens.size()) - 1;

  const ConstTensorView rows = judged_.view().reshape({most_ + 1, judged_.dim(2)});
  // Who takes may stop before the end; the states go back to what was seen by then: `last` and all
  // that were taken but the last one.
  std::int64_t taken = 0;
  Ids kept;
  std::exception_ptr thrown;
  for (bool go_on = true; go_on && kept.size() < tokens.size();) {
    kept.push_back(tokens[kept.size()]);
    target_->push(kept.back());
    draft_->push(kept.back());
    ++taken;
    try {
      go_on = take(kept.back(), rows.rows(taken - 1, 1));
    } catch (...) {
      thrown = std::current_exception();
      go_on = false;
    }
  }
  steps_.restore(taken - 1, target_->slot().slots->state, target_->stream());
  draft_steps_[static_cast<std::size_t>(taken - 1)].restore(0, draft_->slot().slots->state,
                                                            draft_->stream());
  for (Generator* generator : {target_, draft_}) {
    generator->mark_seen(kept);
    generator->slot().set_token(kept.back());
  }
  target_->tokens_seen_ += taken;
  draft_->tokens_seen_ += taken;
  undo.forget();
  if (thrown) std::rethrow_exception(thrown);
}

Ids Speculation::next() {
  Ids tokens;
  advance([&](std::int32_t token, const ConstTensorView&) {
    tokens.push_back(token);
    return true;
  });
  return tokens;
}

Generated Speculation::generate(const GenerateOptions& options) {
  options.check();
  Generated result;
  bool ended = options.max_tokens == 0;
  while (!ended) {
    advance([&](std::int32_t token, const ConstTensorView& logits) {
      const std::optional<StopReason> reason =
          target_->receive(options, token, target_->odds(options, token, logits), result);
      ended = reason || static_cast<std::int64_t>(result.tokens.size()) == options.max_tokens;
      if (reason) result.reason = *reason;
      return !ended;
    });
  }
  return result;
}

}  // namespace mamba
