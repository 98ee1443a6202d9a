// Texts of several generators until each has ended, step by step or one step ahead of what the host
// knows.
#include <mamba/generator.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "host/generate/generator_slots.hpp"

namespace mamba {

namespace {

// One element is for all members.
const GenerateOptions& options_of(const std::vector<GenerateOptions>& options, std::size_t member) {
  return options[options.size() == 1 ? 0 : member];
}

// For one more.
void make_room(std::vector<std::int32_t>& tokens) {
  if (tokens.size() == tokens.capacity()) tokens.reserve(2 * tokens.size() + 1);
}

}  // namespace

std::vector<Generated> Generator::generate(const Group& group,
                                           const std::vector<GenerateOptions>& options) {
  constexpr const char* where = "Generator::generate";
  if (options.size() != 1 && options.size() != group.size()) {
    throw ArgumentError(where, "options", fmt::format("1 or {}", group.size()),
                        fmt::format("{}", options.size()));
  }
  if (group.empty()) return {};
  std::vector<Generated> results(group.size());
  std::vector<std::size_t> active;
  bool watched = false;  // by somebody, who may do anything with a generator, or wants its logits
  for (std::size_t i = 0; i < group.size(); ++i) {
    const GenerateOptions& one = options_of(options, i);
    one.check();
    watched = watched || one.log_probs || ((one.on_token || one.on_text) && !one.callbacks_apart);
    if (one.max_tokens > 0) active.push_back(i);
  }
  in_order(where, group);
  Group writing;
  for (const std::size_t i : active) writing.push_back(group[i]);
  check_read(where, writing);
  try {
    if (!active.empty() && !watched && group.front()->slot().slots->ahead) {
      run_ahead(group, options, active, results);
    } else {
      run_together(group, options, active, results);
    }
  } catch (...) {  // what was chosen by then is in the results
    for (const std::size_t i : active) {
      results[i].reason = StopReason::error;
      results[i].error = std::current_exception();
    }
  }
  return results;
}

// `active` are those that go on, also when it throws.
void Generator::run_together(const Group& group, const std::vector<GenerateOptions>& options,
                             std::vector<std::size_t>& active, std::vector<Generated>& results) {
  while (!active.empty()) {
    Group writing;  // all memory is taken before tokens are chosen
    std::vector<std::optional<LogProbs>> odds(active.size());
    std::vector<std::size_t> left;
    left.reserve(active.size());
    for (const std::size_t i : active) {
      writing.push_back(group[i]);
      make_room(results[i].tokens);
    }
    std::vector<Chosen> chosen = next(writing);
    // Before anybody hears of a token: a callback may take another member's logits further.
    for (std::size_t j = 0; j < active.size(); ++j) {
      const std::size_t i = active[j];
      if (chosen[j].error) continue;
      try {
        odds[j] =
            group[i]->odds(options_of(options, i), chosen[j].token, group[i]->slot().logits());
      } catch (...) {  // its token is part of its text all the same, and the others go on
        results[i].tokens.push_back(chosen[j].token);
        chosen[j].error = std::current_exception();
      }
    }
    for (std::size_t j = 0; j < active.size(); ++j) {
      const std::size_t i = active[j];
      if (chosen[j].error) {
        results[i].reason = StopReason::error;
        results[i].error = chosen[j].error;
      } else if (goes_on(*group[i], options_of(options, i), chosen[j].token, std::move(odds[j]),
                         results[i])) {
        left.push_back(i);
      }
    }
    active = std::move(left);
  }
}

// While the host looks at the tokens of one step, the device is at the next, with all who may go
// on. Who turns out to have ended has then seen its last token, as after feed_pending(); what is
// taken back is the token chosen after that.
void Generator::run_ahead(const Group& group, const std::vector<GenerateOptions>& options,
                          std::vector<std::size_t>& active, std::vector<Generated>& results) {
  constexpr const char* where = "Generator::generate";
  GeneratorSlots& slots = *group.front()->slot().slots;
  const auto members = [&](const std::vector<std::size_t>& which) {
    Group list;
    for (const std::size_t i : which) list.push_back(group[i]);
    return in_order(where, list);
  };
  std::vector<std::size_t> flying = active;  // these lists are in ascending order
  const auto ended = [&](std::size_t i) {
    return !std::binary_search(active.begin(), active.end(), i);
  };
  choose(members(flying));
  while (!flying.empty()) {
    std::vector<std::size_t> next;
    for (const std::size_t i : flying) {
      const auto written = static_cast<std::int64_t>(results[i].tokens.size());
      if (!ended(i) && written + 1 < options_of(options, i).max_tokens) next.push_back(i);
    }
    if (!next.empty()) step(members(next));
    const std::int32_t* tokens = slots.out.receive();
    std::exception_ptr error;
    for (const std::size_t i : flying) {
      Generator& member = *group[i];
      const std::int32_t token = tokens[member.slot().row];
      const bool stepped = std::binary_search(next.begin(), next.end(), i);
      if (token < 0 && !error) error = slots.no_token();
      if (ended(i)) {
        if (token >= 0) slots.unchoose(member.slot().row, token, member.options_);
        continue;
      }
      bool more = false;
      if (token < 0) {
        if (stepped) --member.tokens_seen_;
        results[i].reason = StopReason::error;
        results[i].error = error;
      } else {
        member.push(token);
        member.pending_ = !stepped;
        more = goes_on(member, options_of(options, i), token, std::nullopt, results[i]);
      }
      if (!more) active.erase(std::lower_bound(active.begin(), active.end(), i));
    }
    flying = std::move(next);
  }
}

}  // namespace mamba
