// Several continuations of one prompt, of which the likeliest is kept: the prompt is read once and
// its state copied n times.
//
//   best_of_n [PROMPT [N [MODEL]]]   default model: the one that comes with the library
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <mamba/mamba.hpp>

#include "shipped_model.hpp"

namespace {

// log p(id) of a row of logits.
double log_p(const float* logits, std::int64_t vocab, std::int32_t id) {
  const float largest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(double{logits[v]} - double{largest});
  return double{logits[id]} - double{largest} - std::log(sum);
}

// The log probabilities of texts of one length after `trunk`, in one run of the model over all of
// them: the trunk's state is repeated, and every position's logits are asked for.
std::vector<double> log_p(mamba::Generator& trunk, const std::vector<mamba::Generated>& texts) {
  const mamba::LanguageModel& model = trunk.model();
  const auto n = static_cast<std::int64_t>(texts.size());
  const auto time = static_cast<std::int64_t>(texts[0].tokens.size());
  const std::int64_t vocab = model.config().vocab_size;
  std::vector<std::int32_t> ids;
  std::vector<double> sums;
  for (const mamba::Generated& text : texts) {
    ids.insert(ids.end(), text.tokens.begin(), text.tokens.end());
    sums.push_back(log_p(static_cast<const float*>(trunk.logits().data()), vocab, text.tokens[0]));
  }
  mamba::StackState states = trunk.state().repeat(n);
  mamba::Tensor logits({n, time, vocab}, mamba::DType::f32);
  model.forward(mamba::Tensor::from(ids, {n, time}), states, logits, trunk.stream());
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t t = 0; t + 1 < time; ++t) {  // position t foretells token t + 1
      const std::int64_t at = i * time + t;
      sums[static_cast<std::size_t>(i)] +=
          log_p(logits.data<float>() + at * vocab, vocab, ids[static_cast<std::size_t>(at + 1)]);
    }
  }
  return sums;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string prompt = argc > 1 ? argv[1] : "And it came to pass, ";
  const std::int64_t n = argc > 2 ? std::stoll(argv[2]) : 8;
  const std::string folder = argc > 3 ? argv[3] : shipped_model().string();
  const auto model = mamba::LanguageModel::load(folder);
  const auto bytes = mamba::Tokenizer::bytes();

  mamba::SamplingOptions sampling;
  sampling.temperature = 0.7f;
  mamba::GeneratorPool pool(model, n + 1);
  mamba::Generator trunk = pool.make(sampling);
  trunk.read(bytes.encode(prompt));  // once for all of them

  std::vector<mamba::Generator> branches = trunk.fork(n);
  mamba::Generator::Group group;
  for (mamba::Generator& branch : branches) group.push_back(&branch);
  mamba::GenerateOptions options;
  options.max_tokens = 60;
  options.ignore_eos = true;  // all of one length, so that their odds compare
  const std::vector<mamba::Generated> texts = mamba::Generator::generate(group, {options});

  const std::vector<double> scores = log_p(trunk, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::printf("%8.2f  %s\n", scores[i], bytes.decode(texts[i].tokens).c_str());
  }
  const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
  std::printf("best of %lld: %s%s\n", static_cast<long long>(n), prompt.c_str(),
              bytes.decode(texts[static_cast<std::size_t>(best)].tokens).c_str());
}
