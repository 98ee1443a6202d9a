// The likeliest text, looked for with several beams: each step goes on from the best few of all
// continuations of all beams, and a beam that goes on in several ways is forked.
//
//   beam_search [PROMPT [WIDTH [MODEL]]]   default model: the one that comes with the library; its
//                                          own tokenizer, or --tokenizer FILE
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

constexpr int length = 60;

struct Beam {
  mamba::Generator generator;
  std::vector<std::int32_t> text;
  double log_p = 0;
};

struct Candidate {
  std::size_t beam;
  std::int32_t token;
  double log_p;  // of the whole text
};

// The best continuations by one token, of all beams, best first.
std::vector<Candidate> best(std::vector<Beam>& beams, std::size_t width) {
  std::vector<Candidate> all;
  for (std::size_t b = 0; b < beams.size(); ++b) {
    const mamba::Tensor row = host_logits(beams[b].generator);
    const auto* logits = row.data<float>();
    const float largest = *std::max_element(logits, logits + row.count());
    double sum = 0;
    for (std::int64_t v = 0; v < row.count(); ++v) {
      sum += std::exp(double{logits[v]} - double{largest});
    }
    for (std::int64_t v = 0; v < row.count(); ++v) {
      const double log_p = double{logits[v]} - double{largest} - std::log(sum);
      all.push_back({b, static_cast<std::int32_t>(v), beams[b].log_p + log_p});
    }
  }
  const auto end = all.begin() + static_cast<std::ptrdiff_t>(std::min(width, all.size()));
  std::partial_sort(all.begin(), end, all.end(),
                    [](const Candidate& a, const Candidate& b) { return a.log_p > b.log_p; });
  all.erase(end, all.end());
  return all;
}

// Every candidate as a beam of its own: a copy of its parent's state, which then reads its token.
std::vector<Beam> follow(std::vector<Beam>& beams, const std::vector<Candidate>& candidates) {
  std::vector<Beam> next;
  std::vector<std::vector<std::int32_t>> tokens;
  for (const Candidate& candidate : candidates) {
    Beam& parent = beams[candidate.beam];
    next.push_back({parent.generator.fork(), parent.text, candidate.log_p});
    next.back().text.push_back(candidate.token);
    tokens.push_back({candidate.token});
  }
  mamba::Generator::Group group;
  for (Beam& beam : next) group.push_back(&beam.generator);
  mamba::Generator::read(group, tokens);  // one run of the model for all beams
  return next;
}

int search(const std::string& prompt, std::int32_t width, const ModelFlags& flags) {
  const mamba::LanguageModel model = flags.load("beam_search");
  const mamba::Tokenizer tokenizer = flags.load_tokenizer("beam_search", "tokenizer", model);
  const std::vector<std::int32_t> ids = tokenizer.encode(prompt);
  if (ids.empty()) throw mamba::ArgumentError("beam_search", "PROMPT", "a text", "an empty one");

  // Room for the beams of a step and of the next, so that all forks stay in one pool.
  mamba::Stream stream = flags.stream();
  mamba::GeneratorPool pool(model, 2 * std::int64_t{width}, stream);
  std::vector<Beam> beams;
  beams.push_back({pool.make(), {}, 0});
  beams[0].generator.read(ids);
  for (int i = 0; i < length; ++i) {
    beams = follow(beams, best(beams, static_cast<std::size_t>(width)));
  }
  for (const Beam& beam : beams) {
    std::printf("%8.2f  %s%s\n", beam.log_p, prompt.c_str(),
                whole_text(tokenizer, beam.text).c_str());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The likeliest text after a prompt, looked for with several beams.", "beam_search");
  std::string prompt = "Blessed are ";
  std::int32_t width = 4;
  ModelFlags flags;
  app.add_option("PROMPT", prompt)->capture_default_str();
  app.add_option("WIDTH", width, "Beams")
      ->check(whole_number<std::int32_t>(1))
      ->capture_default_str();
  flags.add_folder(app);
  flags.add_tokenizer(app);
  flags.add_placement(app);
  return run_program(app, argc, argv, [&] { return search(prompt, width, flags); });
}
