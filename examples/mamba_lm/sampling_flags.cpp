#include "sampling_flags.hpp"

#include <sstream>

#include <mamba/error.hpp>

#include "commands.hpp"

namespace {

template <class T>
std::string text_of(T value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

template <class T>
void agree(const CLI::Option* flag, T given, T saved, const std::string& path) {
  if (flag->count() == 0 || given == saved) return;
  throw mamba::ArgumentError("generate", flag->get_name(), text_of(saved) + " as saved in " + path,
                             text_of(given));
}

}  // namespace

void SamplingFlags::add(CLI::App& app) {
  const std::string group = "Sampling (greedy without any of these; kept when resuming)";
  temperature_ = app.add_option("--temperature", given_.temperature,
                                "0 is greedy (default: 1 with any other option of this group)");
  top_k_ = app.add_option("--top-k", given_.top_k, "Only the K likeliest tokens; 0: all");
  top_p_ =
      app.add_option("--top-p", given_.top_p, "Only the likeliest tokens that sum up to P; 1: all");
  min_p_ = app.add_option("--min-p", given_.min_p,
                          "Only tokens of at least P times the likeliest; 0: all");
  repetition_penalty_ =
      app.add_option("--repetition-penalty", given_.repetition_penalty,
                     "Divides the score of tokens that occurred, in prompt or output; 1: none");
  seed_ = app.add_option("--seed", given_.seed, "The same seed, the same text (default: 0)");
  top_k_->check(whole_number<std::int64_t>(0));
  seed_->check(whole_number<std::uint64_t>(0));
  for (CLI::Option* option : {temperature_, top_k_, top_p_, min_p_, repetition_penalty_, seed_}) {
    option->group(group);
  }
}

mamba::SamplingOptions SamplingFlags::options() const {
  mamba::SamplingOptions options = given_;
  const bool others = top_k_->count() + top_p_->count() + min_p_->count() +
                          repetition_penalty_->count() + seed_->count() >
                      0;
  if (others && temperature_->count() == 0) options.temperature = 1;
  options.check();
  return options;
}

void SamplingFlags::check_agree(const mamba::SamplingOptions& saved,
                                const std::string& path) const {
  agree(temperature_, given_.temperature, saved.temperature, path);
  agree(top_k_, given_.top_k, saved.top_k, path);
  agree(top_p_, given_.top_p, saved.top_p, path);
  agree(min_p_, given_.min_p, saved.min_p, path);
  agree(repetition_penalty_, given_.repetition_penalty, saved.repetition_penalty, path);
  agree(seed_, given_.seed, saved.seed, path);
}
