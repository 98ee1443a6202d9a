// The examples of generation as their user sees them: beam search, best of n.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include <mamba/language_model.hpp>

#include "child.hpp"

namespace {

using mamba::testing::golden_folder;
using mamba::testing::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

void expect_error(const std::string& program, const std::vector<std::string>& arguments,
                  const std::string& text) {
  SCOPED_TRACE(::testing::PrintToString(arguments));
  const Finished finished = run(arguments, program);
  EXPECT_EQ(finished.code, 1);
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, HasSubstr(text));
  EXPECT_EQ(finished.err.find('\n'), finished.err.size() - 1) << finished.err;
}

// ---- forks --------------------------------------------------------------------------------------

double first_score(const std::string& out) { return std::stod(out); }

class Forks : public ProgramTest {
 protected:
  // In f32 a greedy choice does not depend on how products of other batches round.
  std::vector<std::string> flags(std::vector<std::string> more) const {
    more.insert(more.end(), {"--dtype", "f32"});
    more.insert(more.end(), on_.begin(), on_.end());
    return more;
  }
};

TEST_F(Forks, of_one_beam_are_greedy_and_of_more_find_likelier_texts) {
  const std::string prompt = "Blessed are ";
  everywhere([&] {
    const Finished one = run(flags({prompt, "1"}), place_of(BEAM_SEARCH));
    EXPECT_EQ(one.code, 0) << one.err;
    const Finished greedy = run(flags({"generate", "--prompt", prompt, "-n", "60"}));
    EXPECT_THAT(one.out, HasSubstr(prompt + greedy.out));
    const Finished four = run(flags({prompt, "4"}), place_of(BEAM_SEARCH));
    EXPECT_EQ(four.code, 0) << four.err;
    EXPECT_GT(first_score(four.out), first_score(one.out) + 1);
  });
}

TEST_F(Forks, keep_the_likeliest_of_several) {
  everywhere([&] {
    const Finished finished = run(flags({"In the beginning ", "4"}), place_of(BEST_OF_N));
    EXPECT_EQ(finished.code, 0) << finished.err;
    const std::string start = "best of 4: In the beginning ";
    const std::size_t last = finished.out.find(start);
    ASSERT_NE(last, std::string::npos) << finished.out;
    const std::string best = finished.out.substr(last + start.size());
    std::vector<double> scores;
    double of_best = 0;
    for (std::size_t line = 0; line < last; line = finished.out.find('\n', line) + 1) {
      const char* begin = finished.out.c_str() + line;
      char* end = nullptr;
      const double score = std::strtod(begin, &end);  // "   -12.34  text", which has lines too
      if (end < begin + 4 || end[-3] != '.' || std::strncmp(end, "  ", 2) != 0) continue;
      scores.push_back(score);
      const auto text = static_cast<std::size_t>(end - finished.out.c_str()) + 2;
      if (finished.out.compare(text, best.size(), best) == 0) of_best = score;
    }
    ASSERT_EQ(scores.size(), 4u) << finished.out;
    EXPECT_EQ(of_best, *std::max_element(scores.begin(), scores.end())) << finished.out;
    EXPECT_EQ(run(flags({"In the beginning ", "4"}), place_of(BEST_OF_N)).out, finished.out);
  });
}

TEST_F(Forks, bad_input_is_one_line_and_exit_code_1) {
  const std::string base = golden_folder("base");
  for (const char* built : {BEAM_SEARCH, BEST_OF_N}) {
    const std::string program = place_of(built);
    const std::string name = std::filesystem::path(program).filename().string() + ": ";
    for (const char* count : {"0", "x", "-1", "1.5", "99999999999"}) {
      expect_error(program, {"A", count}, name);
    }
    expect_error(program, {"A", "0"}, "expected a whole number from 1 to 2147483647, got 0");
    expect_error(program, {"", "3"}, name + "PROMPT: expected a value, got an empty one");
    expect_error(program, {"A", "2", "/nofolder"},
                 "LanguageModel::load: /nofolder: expected a folder");
    expect_error(program, {"A", "2", base}, name + "tokenizer: expected " + base);
    expect_error(program, {"A", "2", base, "more"}, name);
  }
}

// A model with another vocabulary than bytes brings its own tokenizer.
TEST_F(Forks, take_the_tokenizer_of_the_model) {
  const TemporaryFolder folder;
  const std::string model = folder.file("model");
  mamba::LanguageModelConfig config;
  config.layer.d_model = 16;
  config.n_layer = 1;
  config.vocab_size = 726;
  mamba::LanguageModel::random(config, 1).save(model);
  std::filesystem::copy_file(golden_folder("tokenizer") + "/tokenizer.json",
                             model + "/tokenizer.json");
  const Finished greedy = run({"generate", model, "--prompt", "The state", "-n", "60"});
  const Finished one = run({"The state", "1", model}, place_of(BEAM_SEARCH));
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_THAT(one.out, HasSubstr("The state" + greedy.out + "\n"));
  const Finished best = run({"The state", "2", model}, place_of(BEST_OF_N));
  EXPECT_EQ(best.code, 0) << best.err;
  EXPECT_THAT(best.out, HasSubstr("best of 2: The state"));
}

}  // namespace
