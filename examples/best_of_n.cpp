// Several continuations of one prompt, of which the likeliest is kept: the prompt is read once and
// its state copied n times.
//
//   best_of_n [PROMPT [N [MODEL]]]   default model: the one that comes with the library; its own
//                                    tokenizer, or --tokenizer FILE
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <mamba/mamba.hpp>

#include "programs/host_logits.hpp"
#include "programs/model_flags.hpp"
#include "programs/program.hpp"
#include "programs/whole_text.hpp"

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
  const mamba::Tensor first = host_logits(trunk);
  std::vector<std::int32_t> ids;
  std::vector<double> sums;
  for (const mamba::Generated& text : texts) {
    ids.insert(ids.end(), text.tokens.begin(), text.tokens.end());
    sums.push_back(log_p(first.data<float>(), vocab, text.tokens[0]));
  }
  mamba::StackState states = trunk.state().repeat(n, trunk.stream());
  mamba::Tensor logits({n, time, vocab}, mamba::DType::f32, model.device());
  const mamba::Tensor read = mamba::Tensor::from(ids, {n, time}).to(model.device());
  model.forward(read, states, mamba::Logits::all(logits), trunk.stream());
  trunk.stream().synchronize();
  const mamba::Tensor host = logits.to(mamba::Device::cpu());
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t t = 0; t + 1 < time; ++t) {  // position t foretells token t + 1
      const std::int64_t at = i * time + t;
      sums[static_cast<std::size_t>(i)] +=
          log_p(host.data<float>() + at * vocab, vocab, ids[static_cast<std::size_t>(at + 1)]);
    }
  }
  return sums;
}

int best_of(const std::string& prompt, std::int32_t n, const ModelFlags& flags) {
  const mamba::LanguageModel model = flags.load("best_of_n");
  const mamba::Tokenizer tokenizer = flags.load_tokenizer("best_of_n", "tokenizer", model);
  const std::vector<std::int32_t> ids = tokenizer.encode(prompt);
  if (ids.empty()) throw mamba::ArgumentError("best_of_n", "PROMPT", "a text", "an empty one");

  mamba::SamplingOptions sampling;
  sampling.temperature = 0.7f;
  mamba::Stream stream = flags.stream();
  mamba::GeneratorPool pool(model, std::int64_t{n} + 1, stream);
  mamba::Generator trunk = pool.make(sampling);
  trunk.read(ids);  // once for all of them

  std::vector<mamba::Generator> branches = trunk.fork(n);
  mamba::Generator::Group group;
  for (mamba::Generator& branch : branches) group.push_back(&branch);
  mamba::GenerateOptions options;
  options.max_tokens = 60;
  options.ignore_eos = true;  // all of one length, so that their odds compare
  const std::vector<mamba::Generated> texts = mamba::Generator::generate(group, {options});
  for (const mamba::Generated& text : texts) {
    if (text.error) std::rethrow_exception(text.error);
  }

  const std::vector<double> scores = log_p(trunk, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::printf("%8.2f  %s\n", scores[i], whole_text(tokenizer, texts[i].tokens).c_str());
  }
  const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
  std::printf("best of %d: %s%s\n", n, prompt.c_str(),
              whole_text(tokenizer, texts[static_cast<std::size_t>(best)].tokens).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The likeliest of several continuations of a prompt.", "best_of_n");
  std::string prompt = "And it came to pass, ";
  std::int32_t n = 8;
  ModelFlags flags;
  app.add_option("PROMPT", prompt)->capture_default_str();
  app.add_option("N", n, "Continuations")
      ->check(whole_number<std::int32_t>(1))
      ->capture_default_str();
  flags.add_folder(app);
  flags.add_tokenizer(app);
  flags.add_placement(app);
  return run_program(app, argc, argv, [&] { return best_of(prompt, n, flags); });
}
