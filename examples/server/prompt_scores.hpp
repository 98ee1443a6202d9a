// How likely a model finds each token of a prompt after those before it.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/generate_options.hpp>
#include <mamba/language_model.hpp>

namespace server {

// Goes through the prompt with a state of its own, a piece at a time.
class PromptScores {
 public:
  // With the `top` likeliest in each place. The prompt must outlive it.
  PromptScores(const mamba::LanguageModel& model, const std::vector<std::int32_t>& prompt,
               std::int64_t top);

  bool done() const { return read_ + 1 >= prompt_->size(); }
  void read_piece(mamba::Stream& stream);
  // Of each token but the first, which comes after nothing.
  const std::vector<mamba::LogProbs>& scores() const { return scores_; }

 private:
  const mamba::LanguageModel* model_;
  const std::vector<std::int32_t>* prompt_;
  std::int64_t top_;
  mamba::StackState state_;
  std::size_t read_ = 0;
  std::vector<mamba::LogProbs> scores_;
};

}  // namespace server
