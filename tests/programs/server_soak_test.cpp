// mamba-server --lines among hostile requests: whoever asks for something that can be answered gets
// what he would get alone, and every hostile request gets its own error.
//
// MAMBA_SOAK_REQUESTS=10000 in the environment makes it longer than it is in every run of the
// tests.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include <mamba/generator.hpp>

#include "child.hpp"
#include "generate/bpe_model.hpp"
#include "server/poisoned_model.hpp"

namespace {

using mamba::testing::poisoned_model;
using mamba::testing::TemporaryFolder;
using Json = nlohmann::json;

struct Expected {
  std::string text, done;  // no `done`: an error
  std::int64_t tokens = 0;
};

struct Answer {
  std::string text, done, error;
  std::int64_t tokens = 0;
};

std::int64_t requests() {
  const char* given = std::getenv("MAMBA_SOAK_REQUESTS");
  return given != nullptr ? std::atoll(given) : 400;
}

class Soak {
 public:
  Soak(const mamba::LanguageModel& model, const mamba::Tokenizer& tokenizer)
      : model_(model), tokenizer_(tokenizer) {}

  // Its line, with what is to come of it kept.
  std::string request(std::int64_t id) { return id % 10 == 3 ? hostile(id) : honest(id); }
  const std::map<std::string, Expected>& expected() const { return expected_; }
  std::int64_t nameless() const { return nameless_; }  // errors that have no id
  std::int64_t answered() const { return answered_; }  // to the end

 private:
  std::size_t pick(std::size_t count) { return random_() % count; }

  std::string honest(std::int64_t id) {
    static const std::vector<std::string> words = {
        "the", " king", " and", ".\"", "\n    ", " \xC3\xA9", "said", " ", "\xE4\xBD\xA0"};
    std::string prompt = "A";
    for (std::size_t i = pick(12); i-- > 0;) prompt += words[pick(words.size())];
    Json line{{"id", id}, {"prompt", prompt}, {"max_tokens", pick(24)}};
    mamba::SamplingOptions sampling;
    mamba::GenerateOptions options;
    options.tokenizer = &tokenizer_;
    options.max_tokens = line["max_tokens"];
    if (pick(2) == 0) {
      sampling.temperature = 0.8f;
      sampling.top_p = 0.9f;
      sampling.seed = random_();
      line["temperature"] = 0.8;
      line["top_p"] = 0.9;
      line["seed"] = sampling.seed;
    } else if (pick(2) == 0) {
      line["temperature"] = 0;
      line["top_p"] = 0.5;
      line["seed"] = nullptr;
    }
    if (pick(3) == 0) {
      options.stop = {std::string(1, static_cast<char>('a' + pick(26)))};
      line["stop"] = pick(2) == 0 ? Json(options.stop) : Json(options.stop[0]);
    } else if (pick(3) == 0) {
      line["stop"] = nullptr;
    }
    Expected& expected = expected_[line["id"].dump()];
    options.on_text = [&](std::string_view text) {
      expected.text += text;
      return true;
    };
    mamba::Generator alone(model_, sampling);
    alone.read(tokenizer_.encode(prompt));
    const mamba::Generated generated =
        std::move(mamba::Generator::generate({&alone}, {options}).front());
    if (generated.error) return line.dump() + "\n";  // it wrote the poison itself
    expected.text += alone.finish_text();
    ++answered_;
    expected.tokens = static_cast<std::int64_t>(generated.tokens.size());
    const std::map<mamba::StopReason, std::string> names = {
        {mamba::StopReason::max_tokens, "max_tokens"},
        {mamba::StopReason::eos, "eos"},
        {mamba::StopReason::stop_string, "stop"}};
    expected.done = names.at(generated.reason);
    return line.dump() + "\n";
  }

  std::string hostile(std::int64_t id) {
    const std::string name = std::to_string(id);
    const std::string start = "{\"id\":" + name + ",\"prompt\":\"A\",";
    const auto nested = [](std::size_t depth) {
      return std::string(depth, '[') + std::string(depth, ']');
    };
    std::string line;
    switch (pick(12)) {
      case 0:  // no finite logit
        line = "{\"id\":" + name + ",\"prompt\":\"AZA\",\"max_tokens\":9}";
        break;
      case 1:
        line = start + "\"stop\":" + nested(100000) + "}";
        break;
      case 2: {
        line = start;
        for (int i = 0; i < 100000; ++i) line += "\"k" + std::to_string(i) + "\":1,";
        line += "\"max_tokens\":1}";
        break;
      }
      case 3:
        line = start + "\"max_tokens\":1e999}";
        break;
      case 4:
        line = start + "\"temperature\":1e39}";
        break;
      case 5:
        line = start + "\"max_tokens\":-1}";
        break;
      case 6:
        line = start + "\"seed\":18446744073709551616}";
        break;
      case 7:
        line = start + "\"prompt\":";
        break;
      case 8:
        line = start + "\"stop\":[\"" + std::string(257, 'x') + "\"]}";
        break;
      case 9:
        line = start + "\"prompt\":\"\"}";
        break;
      case 10:
        ++nameless_;
        return "{\"id\":" + nested(100000) + ",\"prompt\":\"A\"}\n";
      default:
        ++nameless_;
        return "\xFF\xFE no JSON\n";
    }
    expected_[name];
    return line + "\n";
  }

  const mamba::LanguageModel& model_;
  const mamba::Tokenizer& tokenizer_;
  std::mt19937_64 random_{7};
  std::map<std::string, Expected> expected_;
  std::int64_t nameless_ = 0, answered_ = 0;
};

void expect_all_answered(const std::string& folder, const mamba::LanguageModel& model,
                         const mamba::Tokenizer& tokenizer) {
  Soak soak(model, tokenizer);
  std::string input;
  for (std::int64_t id = 0; id < requests(); ++id) input += soak.request(id);
  Child child({folder, "--lines", "--threads", "1", "--capacity", "7"}, false,
              place_of(MAMBA_SERVER));
  std::thread writer([&] {
    child.write(input);
    child.close_input();
  });
  child.wait_to_end();
  writer.join();
  const Finished finished = child.finish();
  EXPECT_EQ(finished.code, 0) << finished.err;

  std::map<std::string, Answer> answers;
  std::int64_t nameless = 0;
  std::istringstream out(finished.out);
  for (std::string text; std::getline(out, text);) {
    const Json line = Json::parse(text);
    if (line["id"].is_null()) {
      ++nameless;
      EXPECT_TRUE(line.contains("error")) << text;
      continue;
    }
    Answer& answer = answers[line["id"].dump()];
    EXPECT_EQ(answer.done + answer.error, "") << "after the end: " << text;
    answer.text += line.value("text", "");
    answer.done = line.value("done", "");
    answer.error = line.value("error", "");
    answer.tokens = line.value("tokens", std::int64_t{0});
  }
  EXPECT_EQ(nameless, soak.nameless());
  ASSERT_EQ(answers.size(), soak.expected().size());
  std::int64_t done = 0;
  for (const auto& [id, expected] : soak.expected()) {
    const Answer& got = answers[id];
    EXPECT_EQ(got.done, expected.done) << id;
    EXPECT_EQ(got.error.empty(), !expected.done.empty()) << id << ": " << got.error;
    EXPECT_EQ(got.text, expected.text) << id;
    EXPECT_EQ(got.tokens, expected.tokens) << id;
    done += expected.done.empty() ? 0 : 1;
  }
  EXPECT_EQ(done, soak.answered());
  EXPECT_GT(done, requests() * 8 / 10);
}

TEST(ServerSoak, byteModelAnswersAllButTheHostileAsIfAlone) {
  const TemporaryFolder folder;
  const mamba::LanguageModel model = poisoned_model(256, 'Z');
  model.save(folder.path());
  expect_all_answered(folder.path(), model, mamba::Tokenizer::bytes());
}

TEST(ServerSoak, bpeModelAnswersAllButTheHostileAsIfAlone) {
  const TemporaryFolder folder;
  const auto tokens = mamba::testing::bpe_tokens(
      {"the", " king", " and", ".\"", "\n    ", "said", "..)", "an", " a", "er", "ing"});
  mamba::testing::write_file(folder.file("tokenizer.json"), mamba::testing::bpe_tokenizer(tokens));
  const mamba::Tokenizer tokenizer = mamba::Tokenizer::load(folder.path());
  const mamba::LanguageModel model =
      poisoned_model(tokenizer.vocab_size(), tokenizer.encode("Z").front());
  model.save(folder.path());
  expect_all_answered(folder.path(), model, tokenizer);
}

}  // namespace
