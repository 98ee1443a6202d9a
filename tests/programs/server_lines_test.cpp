// mamba-server --lines as its user sees it.
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

// Every line that was written, each of which has to be whole.
std::vector<Json> lines(const std::string& out) {
  EXPECT_TRUE(out.empty() || out.back() == '\n') << "half a line at the end: " << out;
  std::vector<Json> all;
  std::istringstream text(out);
  for (std::string line; std::getline(text, line);) {
    Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(json.is_object()) << line;
    if (json.is_object()) all.push_back(std::move(json));
  }
  return all;
}

struct Answer {
  std::string text, done, error;
  int pieces = 0;
};

// By the id, as JSON.
std::map<std::string, Answer> answers(const std::string& out) {
  std::map<std::string, Answer> all;
  for (const Json& line : lines(out)) {
    Answer& answer = all[line.at("id").dump()];
    EXPECT_EQ(answer.done + answer.error, "") << "after the end: " << line;
    answer.text += line.value("text", "");
    answer.done = line.value("done", "");
    answer.error = line.value("error", "");
    answer.pieces += line.contains("text") ? 1 : 0;
  }
  return all;
}

std::string request(int id, const std::string& prompt, int count, Json more = Json::object()) {
  more.update({{"id", id}, {"prompt", prompt}, {"max_tokens", count}});
  return more.dump() + "\n";
}

void expect_error(const std::string& program, const std::vector<std::string>& arguments,
                  const std::string& text) {
  SCOPED_TRACE(::testing::PrintToString(arguments));
  const Finished finished = run(arguments, program);
  EXPECT_EQ(finished.code, 1);
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, HasSubstr(text));
  EXPECT_EQ(finished.err.find('\n'), finished.err.size() - 1) << finished.err;
}

class ServerLines : public ProgramTest {
 protected:
  std::vector<std::string> flags(std::vector<std::string> more = {}) const {
    more.push_back("--lines");
    more.insert(more.end(), on_.begin(), on_.end());
    return more;
  }
  Finished serve(const std::string& input, const std::vector<std::string>& more = {}) const {
    Child child(flags(more), false, place_of(MAMBA_SERVER));
    child.write(input);
    return child.finish();
  }
  std::string alone(const std::string& prompt, int count) const {
    std::vector<std::string> all{"generate", "--prompt", prompt, "-n", std::to_string(count),
                                 "--dtype",  "f32"};
    all.insert(all.end(), on_.begin(), on_.end());
    return run(all).out;
  }
};

// f32: a greedy choice does not depend there on how products of other batches round.
TEST_F(ServerLines, answers_are_those_of_one_prompt_alone_whoever_else_is_there) {
  everywhere([&] {
    std::string input;
    std::map<std::string, std::string> expected;
    const char* prompts[] = {"And the king said", "In the beginning", "A", "Blessed are they that"};
    for (int i = 0; i < 12; ++i) {
      const std::string prompt = prompts[i % 4];
      input += request(i, prompt, 10 + 7 * i);
      expected[std::to_string(i)] = alone(prompt, 10 + 7 * i);
    }
    for (const char* capacity : {"1", "3", "12"}) {
      SCOPED_TRACE(capacity);
      const Finished finished = serve(input, {"--capacity", capacity, "--dtype", "f32"});
      EXPECT_EQ(finished.code, 0) << finished.err;
      const auto got = answers(finished.out);
      ASSERT_EQ(got.size(), expected.size());
      for (const auto& [id, text] : expected) {
        EXPECT_EQ(got.at(id).text, text);
        EXPECT_EQ(got.at(id).done, "max_tokens");
        EXPECT_GT(got.at(id).pieces, 5) << "text comes as it is written";
      }
    }
  });
}

TEST_F(ServerLines, answers_interleave_and_new_prompts_join) {
  everywhere([&] {
    Child child(flags({"--capacity", "2"}), false, place_of(MAMBA_SERVER));
    child.write(request(1, "And", 100000000));
    child.wait_for_output(200);
    child.write(request(2, "The", 20));
    for (std::size_t size = 400; child.output().find("\"id\":2,\"done\"") == std::string::npos;) {
      child.wait_for_output(size += 200);  // the first goes on writing
    }
    child.signal(SIGINT);
    const auto got = answers(child.finish().out);
    EXPECT_EQ(got.at("2").done, "max_tokens");
    EXPECT_EQ(got.at("1").done, "interrupted");
    EXPECT_GT(got.at("1").pieces, 20);
  });
}

TEST_F(ServerLines, a_stop_text_a_seed_and_half_a_character_are_as_in_generate) {
  everywhere([&] {
    const std::string text = alone("In the beginning", 40);
    const Finished finished =
        serve(request(1, "In the beginning", 40, {{"stop", {text.substr(10, 4)}}}) +
                  request(2, "And", 40, {{"temperature", 1.0}, {"seed", 5}}) +
                  request(3, "And", 40, {{"temperature", 1.0}, {"seed", 5}}) +
                  request(4, "And", 40, {{"temperature", 1.0}, {"seed", 6}}) +
                  request(5, "And", 30, {{"temperature", 100.0}, {"seed", 1}}) + request(6, "A", 0),
              {"--dtype", "f32"});
    auto got = answers(finished.out);
    EXPECT_EQ(got["1"].text, text.substr(0, text.find(text.substr(10, 4)) + 4));
    EXPECT_EQ(got["1"].done, "stop");
    EXPECT_EQ(got["2"].text, got["3"].text);
    EXPECT_NE(got["2"].text, got["4"].text);
    EXPECT_THAT(got["5"].text, HasSubstr("\xef\xbf\xbd")) << "bytes that make no characters";
    EXPECT_EQ(got["6"].text, "");
    EXPECT_EQ(got["6"].done, "max_tokens");
  });
}

// Neither ends the server nor keeps it busy for long.
TEST_F(ServerLines, a_deep_line_and_one_of_many_keys_are_answered_by_errors) {
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  std::string keys;
  for (int i = 0; i < 100000; ++i) keys += "\"k" + std::to_string(i) + "\":1,";
  const Finished finished = serve("{\"id\":" + deep + ",\"prompt\":\"a\"}\n" + "{" + keys +
                                  "\"id\":2}\n" + request(3, "b", 1));
  EXPECT_EQ(finished.code, 0) << finished.err;
  auto got = answers(finished.out);
  EXPECT_THAT(got["null"].error, HasSubstr("at most 64 levels"));
  EXPECT_THAT(got["2"].error, HasSubstr("no such key"));
  EXPECT_EQ(got["3"].done, "max_tokens");
}

TEST_F(ServerLines, a_bad_line_is_answered_by_an_error_and_the_others_go_on) {
  const Finished finished = serve(
      "{\"id\":1,\"prompt\":\"And\",\"max_tokens\":5}\n"
      "not json\n\n  \r\n[1]\n"
      "{\"id\":2}\n"
      "{\"id\":3,\"prompt\":\"\"}\n"
      "{\"prompt\":7,\"id\":4}\n"
      "{\"id\":5,\"prompt\":\"A\",\"max_tokens\":1.5}\n"
      "{\"id\":6,\"prompt\":\"A\",\"max_tokens\":-1}\n"
      "{\"id\":7,\"prompt\":\"A\",\"top_k\":5}\n"
      "{\"id\":8,\"prompt\":\"A\",\"temprature\":1}\n"
      "{\"id\":9,\"prompt\":\"A\",\"stop\":[\"\"]}\n"
      "{\"id\":10,\"prompt\":\"A\",\"seed\":-1}\n"
      "{\"id\":11,\"prompt\":\"A\",\"max_tokens\":true}\n"
      "{\"id\":12,\"prompt\":\"A\",\"max_tokens\":18446744073709551615}\n"
      "{\"id\":13,\"prompt\":[\"A\"]}\n"
      "{\"id\":14,\"prompt\":\"A\",\"stop\":7}\n"
      "{\"id\":15,\"prompt\":\"A\",\"stop\":[1]}\n"
      "{\"id\":16,\"prompt\":\"A\",\"ignore_eos\":1}\n"
      "{\"id\":17,\"prompt\":\"A\",\"temperature\":\"hot\"}\n"
      "{\"id\":{\"any\":[\"value\"]},\"prompt\":\"A\",\"max_tokens\":1}");  // no end of line
  EXPECT_EQ(finished.code, 0) << finished.err;
  const auto all = lines(finished.out);
  std::map<std::string, std::string> errors;
  int nameless = 0;
  for (const Json& line : all) {
    if (line.contains("error")) errors[line["id"].dump()] = line["error"];
    nameless += line["id"].is_null() ? 1 : 0;
  }
  EXPECT_EQ(nameless, 2);
  EXPECT_THAT(errors["2"], HasSubstr("prompt"));
  EXPECT_THAT(errors["3"], HasSubstr("prompt"));
  EXPECT_THAT(errors["4"], HasSubstr("prompt: expected a text, got 7"));
  EXPECT_THAT(errors["5"], HasSubstr("max_tokens: expected a whole number below 2^63, got 1.5"));
  EXPECT_THAT(errors["6"], HasSubstr("max_tokens: expected 0"));
  EXPECT_THAT(errors["7"], HasSubstr("temperature: expected above 0"));
  EXPECT_THAT(errors["8"], HasSubstr("temprature: no such key"));
  EXPECT_THAT(errors["9"], HasSubstr("stop (bytes): expected 1 to 256, got 0"));
  EXPECT_THAT(errors["10"], HasSubstr("seed: expected a whole number from 0 to 2^64 - 1, got -1"));
  EXPECT_THAT(errors["11"], HasSubstr("max_tokens: expected a whole number below 2^63, got true"));
  EXPECT_THAT(errors["12"], HasSubstr("max_tokens: expected a whole number below 2^63, got 1844"));
  EXPECT_EQ(errors["13"], "prompt: expected a text, got [\"A\"]");
  EXPECT_EQ(errors["14"], "stop: expected a text, or a list of texts, got 7");
  EXPECT_EQ(errors["15"], "stop: expected a text, got 1");
  EXPECT_EQ(errors["16"], "ignore_eos: expected true or false, got 1");
  EXPECT_EQ(errors["17"], "temperature: expected a number, got \"hot\"");
  EXPECT_EQ(errors["null"], "expected an object of JSON in one line");
  EXPECT_THAT(finished.out, Not(HasSubstr("json.exception")));
  EXPECT_EQ(errors.size(), 17u) << finished.out;
  EXPECT_THAT(finished.out, HasSubstr("{\"id\":1,\"done\":\"max_tokens\""));
  EXPECT_THAT(finished.out, HasSubstr("{\"id\":{\"any\":[\"value\"]},\"done\":\"max_tokens\""));
}

// What clients write for "not given", for one of a list, and for greedy.
TEST_F(ServerLines, null_one_stop_and_temperature_0_are_taken_as_they_are_meant) {
  const std::string plain = answers(serve(request(1, "And the", 12)).out)["1"].text;
  const std::size_t end = plain.find(' ', 1) + 1;
  const Json nulls = {{"stop", nullptr},
                      {"seed", nullptr},
                      {"temperature", nullptr},
                      {"top_p", nullptr},
                      {"ignore_eos", nullptr}};
  const Finished finished =
      serve(request(1, "And the", 12, nulls) +
            request(2, "And the", 12,
                    {{"temperature", 0}, {"top_p", 0.5}, {"top_k", 3}, {"min_p", 0.1}}) +
            request(3, "And the", 12, {{"stop", plain.substr(1, end - 1)}}) +
            request(4, "And the", 12, {{"temperature", 0}, {"top_p", 1.5}}) +
            "{\"id\":5,\"prompt\":null}\n");
  auto got = answers(finished.out);
  EXPECT_EQ(got["1"].text, plain);
  EXPECT_EQ(got["2"].text, plain);
  EXPECT_EQ(got["3"].text, plain.substr(0, end));
  EXPECT_EQ(got["3"].done, "stop");
  EXPECT_THAT(got["4"].error, HasSubstr("top_p: expected 0 to 1, got 1.5"));
  EXPECT_THAT(got["5"].error, HasSubstr("prompt: none"));
}

// Half a surrogate pair, and bytes that are no UTF-8, are one wrong character and no wrong request.
TEST_F(ServerLines, what_is_no_character_is_read_as_one_that_is_wrong) {
  const std::string wrong = "\xEF\xBF\xBD";
  const auto text = [&](const std::string& json) {
    const Finished finished = serve("{\"id\":7,\"max_tokens\":8,\"prompt\":\"" + json + "\"}\n");
    return answers(finished.out)["7"].text;
  };
  EXPECT_EQ(text("half \\ud83d pair"), text("half " + wrong + " pair"));
  EXPECT_EQ(text("half \\uDE00 pair"), text("half " + wrong + " pair"));
  EXPECT_EQ(text("\\ud83d\\ud83d\\ude00"), text(wrong + "\xF0\x9F\x98\x80"));
  EXPECT_EQ(text("bytes \xFF end"), text("bytes " + wrong + " end"));
  EXPECT_EQ(text("no escape: \\\\ud83d"), text("no escape: \\u005cud83d"));
}

TEST_F(ServerLines, an_error_names_the_request_as_far_as_the_line_is_json) {
  const Finished finished = serve(
      "{\"id\":1,\"prompt\":\"a\",\"temperature\":1e999}\n{\"id\":\"two\",\"prompt\":[\n"
      "{\"prompt\":{\"id\":3},\"x\"\n");
  auto got = answers(finished.out);
  EXPECT_THAT(got["1"].error, HasSubstr("JSON"));
  EXPECT_THAT(got["\"two\""].error, HasSubstr("JSON"));
  EXPECT_THAT(got["null"].error, HasSubstr("JSON"));
}

class ServerLinesSignals : public ServerLines, public ::testing::WithParamInterface<int> {};

TEST_P(ServerLinesSignals, while_writing_leave_whole_lines_and_end_every_answer) {
  everywhere([&] {
    Child child(flags({"--capacity", "3"}), false, place_of(MAMBA_SERVER));
    for (int i = 0; i < 3; ++i) child.write(request(i, "And", 100000000));
    child.wait_for_output(1000);
    child.signal(GetParam());
    const Finished finished = child.finish();
    EXPECT_EQ(finished.code, 130) << finished.err;
    for (const auto& [id, answer] : answers(finished.out)) EXPECT_EQ(answer.done, "interrupted");
  });
}

// Those that lie in the pipe, too.
TEST_P(ServerLinesSignals, with_more_requests_than_room_end_every_one) {
  everywhere([&] {
    Child child(flags({"--capacity", "2"}), false, place_of(MAMBA_SERVER));
    std::string input;
    for (int i = 0; i < 5; ++i) input += request(i, "And", 100000000);
    child.write(input + "not json\n" + request(5, "And", 100000000));
    child.wait_for_output(500);
    for (int i = 6; i < 9; ++i) child.write(request(i, "And", 100000000));
    child.wait_for_output(1000);
    child.signal(GetParam());
    const Finished finished = child.finish();
    EXPECT_EQ(finished.code, 130) << finished.err;
    const auto got = answers(finished.out);
    EXPECT_EQ(got.size(), 10u) << finished.out;
    for (int i = 0; i < 9; ++i) {
      const auto found = got.find(std::to_string(i));
      ASSERT_NE(found, got.end()) << i;
      EXPECT_EQ(found->second.done, "interrupted") << i;
      EXPECT_EQ(found->second.text.empty(), i > 1) << i;
    }
    EXPECT_NE(got.at("null").error, "");
  });
}

TEST_P(ServerLinesSignals, while_waiting_for_input_end_it) {
  everywhere([&] {
    Child child(flags(), false, place_of(MAMBA_SERVER));
    child.write(request(1, "And", 3));
    while (child.output().find("done") == std::string::npos) {
      child.wait_for_output(child.output().size() + 1);
    }
    child.signal(GetParam());
    child.wait_to_end();  // with its input open
    EXPECT_EQ(child.finish().code, 130);
  });
}

INSTANTIATE_TEST_SUITE_P(Signals, ServerLinesSignals, ::testing::Values(SIGINT, SIGTERM),
                         [](const auto& signal) {
                           return signal.param == SIGINT ? "int" : "term";
                         });

TEST_F(ServerLines, output_that_nobody_reads_ends_it_quietly) {
  Child child(flags(), false, place_of(MAMBA_SERVER));
  child.write(request(1, "And", 100000000));
  child.wait_for_output(100);
  child.close_output();
  const Finished finished = child.finish();
  EXPECT_EQ(finished.code, 141);  // 128 + SIGPIPE
  EXPECT_EQ(finished.err, "");
}

// A prompt that begins as an earlier one did, in this process or in another, is not read again.
TEST_F(ServerLines, with_a_cache_reads_what_prompts_share_once) {
  everywhere([&] {
    const TemporaryFolder folder;
    const std::string shared(600, 'a');
    const auto known = [&](const std::string& prompt) {
      const Finished finished =
          serve(request(1, prompt, 20), {"--dtype", "f32", "--cache", folder.file("cache")});
      EXPECT_EQ(finished.code, 0) << finished.err;
      EXPECT_EQ(answers(finished.out).at("1").text, alone(prompt, 20));
      return lines(finished.out).back().at("known_tokens").get<int>();
    };
    EXPECT_EQ(known(shared + "b"), 0);
    EXPECT_EQ(known(shared + "c"), 512);
    EXPECT_EQ(known(shared + "b"), 601);
  });
}

TEST_F(ServerLines, a_wrong_command_line_is_one_line_and_exit_code_1) {
  expect_error(place_of(MAMBA_SERVER), {"--lines", "--bogus"},
               "mamba-server: The following argument was not expected: --bogus");
  expect_error(place_of(MAMBA_SERVER), {"--lines", "--capacity", "0"},
               "mamba-server: --capacity: expected a whole number from 1");
  const std::string base = golden_folder("base");
  expect_error(place_of(MAMBA_SERVER), {"--lines", base},
               "mamba-server: tokenizer: expected " + base +
                   "/tokenizer.json, or --tokenizer, got neither\n");
  expect_error(place_of(MAMBA_SERVER), {"--lines", "--cache", base + "/config.json"},
               "config.json: expected a folder");
}

}  // namespace
