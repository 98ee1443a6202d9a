// Speculative decoding (Leviathan, Kalman & Matias 2023; Chen et al. 2023) with a recurrent state:
// a small model proposes, the large one judges all proposals in one run and goes back to the last
// one that it takes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <mamba/generator.hpp>

namespace MAMBA_EXPORT mamba {

struct SpeculationCounts {
  std::int64_t runs = 0;      // of the large model
  std::int64_t proposed = 0;  // tokens, by the small one
  std::int64_t accepted = 0;  // of those
};

// Advances `target` by several tokens at a time with the help of `draft`, which has read the same
// text. Both remain ordinary generators: read into them, save, fork and continue them as usual, as
// long as both are treated alike (read() does that).
//
// What comes out has exactly the distribution that target.next() draws from: a proposal x, drawn
// from the draft's q, is taken with probability min(1, p(x) / q(x)), and the first that is not is
// replaced by a draw from max(0, p - q), normalised. p is what target.options() leaves
// (temperature, top_k, ..., see Sample), q what draft.options() leave. Greedy text is
// identical, except where two logits differ by less than rounding. The random numbers are functions
// of target.options().seed and of the place in the text alone, so a saved text goes on with the
// same ones.
//
// The target's states after every proposal are kept (StackSteps) and one of them is put back. To
// run the accepted tokens once more instead would read all weights again: with mamba-130m's shape,
// four proposals and two cores, keeping adds at most 6 ms to a run of 69 and putting back takes
// 0.1; running three tokens again takes 32.
class Speculation {
 public:
  // Both must outlive this, and have a pool of their own. ArgumentError where the vocabularies
  // differ, or the two have not seen equally many tokens. proposals: 1 to 64, for each run. After
  // an exception from next() or generate() the two are together still: where they were before that
  // run, or, if a callback threw it, behind the token that it was called with.
  Speculation(Generator& target, Generator& draft, std::int64_t proposals = 4);

  void read(const Generator::Ids& ids);
  // The next tokens, between 1 and proposals + 1.
  Generator::Ids next();
  // As Generator::generate: ends after the same token as it would.
  Generated generate(const GenerateOptions& options);

  const SpeculationCounts& counts() const { return counts_; }

 private:
  using Take = std::function<bool(std::int32_t token, ConstTensorView logits)>;
  void check() const;
  void advance(const Take& take);
  std::int32_t first();
  Generator::Ids propose(std::int32_t last);
  Generator::Ids judge(const Generator::Ids& proposals);
  bool greedy() const;
  struct Undo;

  Generator* target_;
  Generator* draft_;
  std::int64_t most_;
  SpeculationCounts counts_;
  Tensor judged_;                          // [1, proposals + 1, vocab_size] f32
  StackSteps steps_;                       // of the target
  std::vector<StackSteps> draft_steps_;    // after each token that the draft read
  StackState before_, draft_before_;       // what an exception puts back
  std::vector<std::vector<double>> odds_;  // q of each proposal; empty when greedy
};

}  // namespace mamba
