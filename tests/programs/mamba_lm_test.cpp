// mamba-lm as its user sees it: what it prints, where, and how it ends.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <thread>

#include <mamba/device.hpp>
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/state_file.hpp>
#include <mamba/tokenizer.hpp>
#include <mamba/version.hpp>

#include "child.hpp"

namespace {

namespace fs = std::filesystem;
using mamba::testing::golden_folder;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;
using Ids = std::vector<std::int32_t>;

// Compared in f32; one of the files is bf16.
constexpr const char* models[] = {"base",         "biased",   "wide",  "falcon",
                                  "sharded_bf16", "original", "bytes", "one"};

std::string golden_values(const std::string& name) {
  return golden_folder(name) + "/golden.safetensors";
}

Ids golden_ids(const std::string& name, const char* which) {
  const mamba::SafetensorsFile file(golden_values(name));
  const mamba::Tensor ids = file.read(file.entry(which));
  return Ids(ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.count());
}

std::string joined(const Ids& ids, const char* separator) {
  std::string text;
  for (const std::int32_t id : ids) {
    if (!text.empty()) text += separator;
    text += std::to_string(id);
  }
  return text;
}

std::string printed(const Ids& ids) { return joined(ids, " ") + "\n"; }

Ids parsed(const std::string& text) {
  std::istringstream words(text);
  return Ids(std::istream_iterator<std::int32_t>(words), {});
}

std::string prompt_of(const std::string& name) {
  return joined(golden_ids(name, "prompt_ids"), ",");
}

Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

void expect_error(const Finished& finished, const std::string& text) {
  EXPECT_EQ(finished.code, 1);
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, HasSubstr(text));
  EXPECT_EQ(finished.err.rfind("mamba-lm: ", 0), 0u) << finished.err;
  EXPECT_EQ(finished.err.find('\n'), finished.err.size() - 1) << finished.err;
}

void expect_success(const Finished& finished, const std::string& out) {
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.out, out);
}

// A folder of its own for every test.
class MambaLm : public ProgramTest {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // Small models are fastest on one thread.
  Arguments generate(const std::string& folder, const Arguments& more) const {
    return Arguments{"generate", folder, "--threads", "1"} + on_ + more;
  }

  // A golden model that may be spoilt.
  std::string copy_of(const std::string& name) const {
    const fs::path copy = folder_ / name;
    fs::copy(golden_folder(name), copy, fs::copy_options::recursive);
    return copy.string();
  }

  std::string saved_state(const std::string& model, const Arguments& more = {}) const {
    const Arguments arguments = {"--prompt-ids", prompt_of(model), "-n", "7",
                                 "--save-state", path("state")};
    const Finished finished = run(generate(golden_folder(model), arguments + more));
    EXPECT_EQ(finished.code, 0) << finished.err;
    return path("state");
  }

 private:
  static fs::path unique_folder() {
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::replace(name.begin(), name.end(), '/', '_');  // of parametrised tests
    return fs::temp_directory_path() / ("mamba_lm_test_" + std::to_string(getpid()) + "_" + name);
  }

  fs::path folder_ = unique_folder();
};

void replace_in_file(const std::string& path, const std::string& from, const std::string& to) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  std::string changed = text.str();
  const std::size_t at = changed.find(from);
  ASSERT_NE(at, std::string::npos);
  std::ofstream(path) << changed.replace(at, from.size(), to);
}

// ---- generate -----------------------------------------------------------------------------------

TEST_F(MambaLm, greedy_ids_are_the_golden_ones) {
  everywhere([&] {
    for (const char* model : models) {
      SCOPED_TRACE(model);
      const Ids expected = golden_ids(model, "greedy_ids");
      const Arguments arguments = {"--prompt-ids", prompt_of(model),
                                   "-n",           std::to_string(expected.size()),
                                   "--dtype",      "f32"};
      const Finished finished = run(generate(golden_folder(model), arguments));
      expect_success(finished, printed(expected));
      EXPECT_THAT(finished.err, HasSubstr("tok/s"));
    }
  });
}

TEST_F(MambaLm, pieces_of_a_prompt_and_threads_do_not_change_the_text) {
  const std::string expected = printed(golden_ids("base", "greedy_ids"));
  everywhere([&] {
    for (const Arguments& how : {Arguments{"--chunk", "1"}, {"--chunk", "4"}, {"--threads", "2"}}) {
      const Arguments all = {
          "generate", golden_folder("base"), "--prompt-ids", prompt_of("base"), "-n", "24"};
      expect_success(run(all + on_ + how), expected);
    }
  });
}

TEST_F(MambaLm, text_in_gives_text_out) {
  const Ids ids = golden_ids("bytes", "greedy_ids");
  const std::string text(ids.begin(), ids.end());
  expect_success(run(generate(golden_folder("bytes"), {"--prompt", "The state", "-n", "24"})),
                 text);
  expect_success(
      run(generate(golden_folder("bytes"), {"--prompt", "The state", "-n", "24", "--as", "ids"})),
      printed(ids));
  expect_success(run(generate(golden_folder("bytes"),
                              {"--prompt-ids", prompt_of("bytes"), "-n", "24", "--as", "text"})),
                 text);
}

TEST_F(MambaLm, a_stop_text_ends_the_output) {
  const Ids ids = golden_ids("bytes", "greedy_ids");
  const std::string text(ids.begin(), ids.end());
  const Arguments arguments = {"--prompt", "The state", "-n",    "24",
                               "--stop",   "not there", "--stop"};
  const std::string stop = text.substr(9, 3);
  everywhere([&] {
    expect_success(run(generate(golden_folder("bytes"), arguments + Arguments{stop})),
                   text.substr(0, 12));
  });
}

TEST_F(MambaLm, end_of_text_is_printed_and_ends_the_output_unless_ignored) {
  const Ids ids = golden_ids("base", "greedy_ids");
  const std::string model = copy_of("base");
  replace_in_file(model + "/config.json", "\"eos_token_id\": 0",
                  "\"eos_token_id\": " + std::to_string(ids[3]));
  const Arguments arguments = {"--prompt-ids", prompt_of("base"), "-n", "24"};
  everywhere([&] {
    expect_success(run(generate(model, arguments)), printed(Ids(ids.begin(), ids.begin() + 4)));
    expect_success(run(generate(model, arguments + Arguments{"--ignore-eos"})), printed(ids));
  });
}

TEST_F(MambaLm, without_new_tokens_nothing_is_printed) {
  everywhere([&] {
    expect_success(run(generate(golden_folder("base"), {"--prompt-ids", prompt_of("base"), "-n",
                                                        "0", "--save-state", path("state")})),
                   "");
    expect_success(run(generate(golden_folder("base"), {"--resume", path("state"), "-n", "24"})),
                   printed(golden_ids("base", "greedy_ids")));
  });
}

TEST_F(MambaLm, a_sampling_option_makes_it_sample) {
  const std::string greedy = printed(golden_ids("base", "greedy_ids"));
  everywhere([&] {
    const auto sampled = [&](const Arguments& options) {
      const Arguments arguments = {"--prompt-ids", prompt_of("base"), "-n", "24", "--ignore-eos"};
      const Finished finished = run(generate(golden_folder("base"), arguments + options));
      EXPECT_EQ(finished.code, 0) << finished.err;
      return finished.out;
    };
    EXPECT_NE(sampled({"--seed", "1"}), greedy);
    EXPECT_EQ(sampled({"--seed", "1"}), sampled({"--seed", "1", "--temperature", "1"}));
    EXPECT_NE(sampled({"--seed", "1"}), sampled({"--seed", "2"}));
    EXPECT_EQ(sampled({"--top-k", "1"}), greedy);
    EXPECT_EQ(sampled({"--temperature", "0"}), greedy);
  });
}

// ---- helpers ------------------------------------------------------------------------------------

TEST_F(MambaLm, a_draft_changes_no_greedy_text_and_says_what_was_taken) {
  const Arguments prompt = {"--prompt-ids", prompt_of("base"), "-n", "24"};
  const std::string expected = printed(golden_ids("base", "greedy_ids"));
  everywhere([&] {
    for (const char* draft : {"base", "sharded_bf16"}) {
      for (const Arguments& more : {Arguments{}, {"--proposals", "2"}, {"--chunk", "2"}}) {
        const Finished finished = run(generate(
            golden_folder("base"), prompt + Arguments{"--draft", golden_folder(draft)} + more));
        expect_success(finished, expected);
        EXPECT_THAT(finished.err, HasSubstr("generated 24 tokens"));
        EXPECT_THAT(finished.err, HasSubstr("; took "));
      }
    }
    const Finished all =
        run(generate(golden_folder("base"),
                     prompt + Arguments{"--draft", golden_folder("base"), "--proposals", "2"}));
    EXPECT_THAT(all.err, HasSubstr("; took 16 of 16 proposals"));
    const Finished sampled =
        run(generate(golden_folder("base"),
                     prompt + Arguments{"--draft", golden_folder("base"), "--seed", "3"}));
    EXPECT_EQ(sampled.code, 0) << sampled.err;
    EXPECT_NE(sampled.out, expected);
  });
}

TEST_F(MambaLm, a_text_with_a_draft_goes_on_without) {
  everywhere([&] {
    const Finished first = run(generate(
        golden_folder("base"), {"--prompt-ids", prompt_of("base"), "-n", "10", "--draft",
                                golden_folder("sharded_bf16"), "--save-state", path("state")}));
    EXPECT_EQ(first.code, 0) << first.err;
    const Finished second =
        run(generate(golden_folder("base"), {"--resume", path("state"), "-n", "14"}));
    EXPECT_EQ(parsed(first.out + second.out), golden_ids("base", "greedy_ids"));
  });
}

TEST_F(MambaLm, a_cache_knows_what_was_read_before) {
  const Ids prompt = golden_ids("base", "prompt_ids");  // 9
  Ids longer = prompt;
  longer.insert(longer.begin() + 8, {5, 6, 7});
  everywhere([&] {
    fs::remove_all(path("cache"));
    const auto read = [&](const Ids& ids, const Arguments& more = {}) {
      const Arguments arguments = {"--prompt-ids", joined(ids, ","), "-n", "24", "--chunk", "4",
                                   "--cache",      path("cache")};
      const Finished finished = run(generate(golden_folder("base"), arguments + more));
      const Finished plain =
          run(generate(golden_folder("base"), {"--prompt-ids", joined(ids, ","), "-n", "24"}));
      expect_success(finished, plain.out);
      return finished.err;
    };
    EXPECT_THAT(read(prompt), HasSubstr("prompt 9 tokens, 0 of them known"));
    EXPECT_THAT(read(prompt), HasSubstr("prompt 9 tokens, 9 of them known"));
    EXPECT_THAT(read(longer), HasSubstr("prompt 12 tokens, 8 of them known"));
    EXPECT_THAT(read(prompt, {"--draft", golden_folder("sharded_bf16")}),
                HasSubstr("9 of them known"));
    for (const auto& entry : fs::directory_iterator(path("cache"))) {
      fs::resize_file(entry.path(), 100);
    }
    const std::string said = read(prompt);
    EXPECT_THAT(said, HasSubstr("prompt 9 tokens, 0 of them known"));
    EXPECT_THAT(said, HasSubstr("mamba-lm: " + path("cache"))) << "damaged, and said";
  });
}

TEST_F(MambaLm, helpers_that_cannot_help_are_refused) {
  const std::string base = golden_folder("base");
  const Arguments generating = {"generate", base, "--prompt-ids", "1,2"};
  expect_error(run(generating + Arguments{"--draft", golden_folder("bytes")}),
               "draft: expected a model with 96 tokens, got one with 256");
  expect_error(run(generating + Arguments{"--draft", path("nothing")}), path("nothing"));
  expect_error(run(generating + Arguments{"--draft", base, "--proposals", "65"}),
               "proposals: expected 1 to 64, got 65");
  expect_error(run(generating + Arguments{"--proposals", "3"}), "--draft");
  expect_error(run(generating + Arguments{"--cache", base + "/config.json"}), "a folder");
  const std::string state = saved_state("base");
  expect_error(run({"generate", base, "--resume", state, "--draft", base}),
               "generate: --draft: expected no --resume");
  expect_error(run({"generate", base, "--resume", state, "--cache", path("cache")}),
               "generate: --cache: expected no --resume");
}

// ---- stop and resume ----------------------------------------------------------------------------

TEST_F(MambaLm, stopped_and_resumed_is_as_never_stopped) {
  const Arguments ways[] = {
      {},
      {"--seed", "5"},
      {"--temperature", "0.8", "--top-k", "20", "--top-p", "0.95", "--seed", "11"},
      {"--temperature", "1.3", "--min-p", "0.02", "--repetition-penalty", "1.2", "--seed", "3"},
      {"--temperature", "0", "--repetition-penalty", "1.5"},
      {"--dtype", "bf16", "--seed", "5"},
  };
  everywhere([&] {
    for (const char* model : {"base", "falcon", "one"}) {
      for (const Arguments& way : ways) {
        SCOPED_TRACE(std::string(model) + " " + ::testing::PrintToString(way));
        const Arguments prompt = {"--prompt-ids", prompt_of(model), "--ignore-eos"};
        const Finished whole =
            run(generate(golden_folder(model), prompt + way + Arguments{"-n", "40"}));
        ASSERT_EQ(whole.code, 0) << whole.err;

        const Finished first =
            run(generate(golden_folder(model),
                         prompt + way + Arguments{"-n", "7", "--save-state", path("state")}));
        // The flags again, as somebody would who repeats the command; they agree with the file.
        const Finished second =
            run(generate(golden_folder(model),
                         way + Arguments{"--resume", path("state"), "-n", "33", "--ignore-eos"}));
        EXPECT_EQ(second.code, 0) << second.err;
        EXPECT_EQ(parsed(first.out).size(), 7u);
        EXPECT_EQ(printed(parsed(first.out + second.out)), whole.out);
      }
    }
  });
}

// The first part on the CPU, the second there, and the other way round.
TEST_F(MambaLm, a_text_goes_on_on_another_device) {
  const auto part = [&](const Arguments& on, const Arguments& more) {
    const Finished finished =
        run(generate(golden_folder("base"), on + more + Arguments{"--dtype", "f32"}));
    EXPECT_EQ(finished.code, 0) << finished.err;
    return finished.out;
  };
  for (const mamba::Device device : mamba::testing::devices()) {
    SCOPED_TRACE(device.name());
    const Arguments here = {"--device", "cpu"};
    const Arguments there = {"--device", device.name()};
    for (const auto& [from, to] : {std::pair(here, there), std::pair(there, here)}) {
      const std::string first =
          part(from, {"--prompt-ids", prompt_of("base"), "-n", "7", "--save-state", path("state")});
      const std::string second = part(to, {"--resume", path("state"), "-n", "17"});
      EXPECT_EQ(parsed(first + second), golden_ids("base", "greedy_ids"));
    }
  }
}

TEST_F(MambaLm, the_file_alone_says_how_to_sample) {
  const std::string state = saved_state("base", {"--temperature", "0.8", "--seed", "11"});
  const Finished silent = run(generate(golden_folder("base"), {"--resume", state, "-n", "20"}));
  const Finished spoken =
      run(generate(golden_folder("base"),
                   {"--resume", state, "-n", "20", "--temperature", "0.8", "--seed", "11"}));
  expect_success(silent, spoken.out);
}

TEST_F(MambaLm, a_flag_that_contradicts_the_file_is_refused_with_both_values) {
  const std::string state =
      saved_state("base", {"--temperature", "0.8", "--top-k", "20", "--seed", "11"});
  const auto resumed = [&](const Arguments& flags) {
    return run(generate(golden_folder("base"), Arguments{"--resume", state, "-n", "5"} + flags));
  };
  expect_error(resumed({"--temperature", "0.7"}),
               "--temperature: expected 0.8 as saved in " + state + ", got 0.7");
  expect_error(resumed({"--top-k", "21"}), "--top-k: expected 20");
  expect_error(resumed({"--top-p", "0.5"}), "--top-p: expected 1 as saved");
  expect_error(resumed({"--min-p", "0.5"}), "--min-p: expected 0 as saved");
  expect_error(resumed({"--repetition-penalty", "1.5"}),
               "--repetition-penalty: expected 1 as saved");
  expect_error(resumed({"--seed", "12"}), "--seed: expected 11");
  expect_success(resumed({"--top-k", "20", "--top-p", "1"}), resumed({}).out);
}

TEST_F(MambaLm, a_prompt_may_follow_a_restored_state) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  const Ids head(prompt.begin(), prompt.begin() + 4);
  const Ids tail(prompt.begin() + 4, prompt.end());
  everywhere([&] {
    run(generate(golden_folder("base"),
                 {"--prompt-ids", joined(head, ","), "-n", "0", "--save-state", path("state")}));
    expect_success(run(generate(golden_folder("base"), {"--resume", path("state"), "--prompt-ids",
                                                        joined(tail, ","), "-n", "24"})),
                   printed(golden_ids("base", "greedy_ids")));
  });
}

TEST_F(MambaLm, a_state_may_be_saved_over_the_one_it_came_from) {
  everywhere([&] {
    const std::string state = saved_state("base");
    Ids ids = golden_ids("base", "greedy_ids");
    for (int first = 7; first < 22; first += 5) {
      expect_success(run(generate(golden_folder("base"),
                                  {"--resume", state, "--save-state", state, "-n", "5"})),
                     printed(Ids(ids.begin() + first, ids.begin() + first + 5)));
    }
  });
}

// ---- interrupts ---------------------------------------------------------------------------------

class MambaLmSignals : public MambaLm, public ::testing::WithParamInterface<int> {};

TEST_P(MambaLmSignals, while_generating_stop_after_a_token_with_the_state_saved) {
  const Arguments how = {"--seed", "4", "--ignore-eos"};
  const Arguments prompt = {"--prompt-ids", prompt_of("base")};
  everywhere([&] {
    Child child(
        generate(golden_folder("base"),
                 prompt + how + Arguments{"-n", "100000000", "--save-state", path("state")}));
    child.wait_for_output(200);
    child.signal(GetParam());
    const Finished first = child.finish();
    EXPECT_EQ(first.code, 130) << first.err;
    ASSERT_FALSE(first.out.empty());
    EXPECT_EQ(first.out.back(), '\n');
    const std::size_t count = parsed(first.out).size();

    const Finished second = run(
        generate(golden_folder("base"), how + Arguments{"--resume", path("state"), "-n", "20"}));
    EXPECT_EQ(second.code, 0) << second.err;
    const Finished whole = run(generate(
        golden_folder("base"), prompt + how + Arguments{"-n", std::to_string(count + 20)}));
    EXPECT_EQ(printed(parsed(first.out + second.out)), whole.out);
  });
}

TEST_P(MambaLmSignals, while_reading_the_prompt_stop_after_a_piece_with_the_state_saved) {
  Ids prompt(20000);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(i * 7 % 96);
  const Arguments by_token = {"--chunk", "1", "-n", "20"};
  Child child(generate(golden_folder("base"), Arguments{"--prompt-ids", joined(prompt, ","),
                                                        "--save-state", path("state")} +
                                                  by_token),
              /*terminal=*/true);
  child.wait_for_error("reading the prompt");
  child.signal(GetParam());
  const Finished first = child.finish();
  EXPECT_EQ(first.code, 130) << first.err;
  EXPECT_EQ(first.out, "");

  const std::int64_t seen = mamba::load_state(path("state")).metadata.tokens_seen.at(0);
  ASSERT_GT(seen, 0);
  ASSERT_LT(seen, static_cast<std::int64_t>(prompt.size()));
  EXPECT_THAT(first.err,
              HasSubstr("stopped after " + std::to_string(seen) + " of 20000 prompt tokens"));
  const Ids rest(prompt.begin() + seen, prompt.end());
  const Finished second = run(
      generate(golden_folder("base"),
               Arguments{"--resume", path("state"), "--prompt-ids", joined(rest, ",")} + by_token));
  const Finished whole = run(
      generate(golden_folder("base"), Arguments{"--prompt-ids", joined(prompt, ",")} + by_token));
  expect_success(second, whole.out);
}

// Whether a process has a file of this name open.
bool has_open(pid_t process, const std::string& name) {
  std::error_code error;
  fs::directory_iterator file("/proc/" + std::to_string(process) + "/fd", error);
  for (; !error && file != fs::directory_iterator(); file.increment(error)) {
    std::error_code gone;
    if (fs::read_symlink(file->path(), gone).filename() == name) return true;
  }
  return false;
}

TEST_P(MambaLmSignals, while_loading_leave_an_older_state_as_it_was) {
  const std::string state = saved_state("base");
  std::ostringstream before;
  before << std::ifstream(state).rdbuf();
  mamba::LanguageModelConfig config;  // 100 MB, which take a while to read
  config.layer.d_model = 768;
  config.n_layer = 7;
  config.vocab_size = 96;
  mamba::LanguageModel::random(config, 1).save(path("large"));
  Child child(generate(path("large"), {"--prompt-ids", "1,2,3", "--save-state", state}));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!has_open(child.pid(), "model.safetensors")) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
  }
  child.signal(GetParam());
  const Finished finished = child.finish();
  EXPECT_EQ(finished.code, 130) << finished.err;
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, HasSubstr("stopped after 0 of 3 prompt tokens"));
  std::ostringstream after;
  after << std::ifstream(state).rdbuf();
  EXPECT_EQ(after.str(), before.str());
}

// Whichever comes first, the file is whole or not there, and nothing is beside it.
TEST_P(MambaLmSignals, while_logits_are_written_leave_no_half_file) {
  mamba::Tensor ids = mamba::Tensor::zeros({1, 100000}, mamba::DType::i32);
  mamba::save_safetensors(path("ids"), {{"input_ids", ids}});
  fs::create_directory(path("results"));
  Child child(
      {"logits", golden_folder("base"), "--tokens", path("ids"), "--out", path("results/out")});
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (fs::is_empty(path("results")) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  child.signal(GetParam());
  EXPECT_EQ(child.finish().code, 130);
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(path("results"))) {
    EXPECT_EQ(entry.path().filename(), "out");
    ++files;
  }
  EXPECT_EQ(files, 1u);
  EXPECT_EQ(mamba::SafetensorsFile(path("results/out")).entry("logits").shape_text(),
            "[1, 100000, 96]");
}

INSTANTIATE_TEST_SUITE_P(Signals, MambaLmSignals, ::testing::Values(SIGINT, SIGTERM),
                         [](const auto& signal) {
                           return signal.param == SIGINT ? "int" : "term";
                         });

TEST_F(MambaLm, output_that_nobody_reads_ends_it_quietly_after_the_state_is_saved) {
  Child child(generate(golden_folder("base"), {"--prompt-ids", "1,2,3", "-n", "100000000",
                                               "--ignore-eos", "--save-state", path("state")}));
  child.wait_for_output(100);
  child.close_output();
  const Finished finished = child.finish();
  EXPECT_EQ(finished.code, 141);  // 128 + SIGPIPE
  EXPECT_EQ(finished.err, "");
  EXPECT_GT(mamba::load_state(path("state")).metadata.tokens_seen.at(0), 3);
}

TEST_F(MambaLm, a_full_disk_under_standard_output_is_an_error) {
  EXPECT_NE(std::system((place_of(MAMBA_LM) + " info " + golden_folder("base") +
                         " > /dev/full 2> /dev/null")
                            .c_str()),
            0);
}

TEST_F(MambaLm, progress_is_shown_on_a_terminal_only) {
  const Arguments arguments = {"--prompt-ids", prompt_of("base"), "--chunk", "2", "-n", "1"};
  Child terminal(generate(golden_folder("base"), arguments), /*terminal=*/true);
  const Finished seen = terminal.finish();
  EXPECT_THAT(seen.err, HasSubstr("reading the prompt: 2 of 9 tokens"));
  const Finished logged = run(generate(golden_folder("base"), arguments));
  EXPECT_THAT(logged.err, ::testing::Not(HasSubstr("reading the prompt")));
  EXPECT_EQ(seen.out, logged.out);
}

TEST_F(MambaLm, on_a_terminal_the_speed_has_a_line_of_its_own) {
  const Arguments arguments =
      generate(golden_folder("bytes"), {"--prompt", "The state", "-n", "5"});
  const std::string text = run(arguments).out;
  ASSERT_NE(text.back(), '\n');
  const Finished shown =
      Child(arguments, /*terminal=*/true, place_of(MAMBA_LM), /*output_too=*/true).finish();
  EXPECT_THAT(shown.err, HasSubstr("\r\nmamba-lm: prompt 9 tokens"));
  EXPECT_THAT(shown.err, ::testing::Not(HasSubstr("\n\r\nmamba-lm")));
  const Finished piped = run(arguments);
  EXPECT_EQ(piped.err.find("mamba-lm: prompt"), 0u) << "the text is elsewhere: " << piped.err;
  EXPECT_EQ(Child(arguments, /*terminal=*/true).finish().out, text) << "no byte more";
}

// ---- logits -------------------------------------------------------------------------------------

std::vector<double> golden_doubles(const std::string& model, const char* name) {
  const mamba::SafetensorsFile file(golden_values(model));
  const std::vector<unsigned char> bytes = file.bytes(file.entry(name));
  std::vector<double> values(bytes.size() / sizeof(double));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<double> written_floats(const std::string& path, const char* name) {
  const mamba::SafetensorsFile file(path);
  EXPECT_EQ(file.entry(name).dtype, "F32");
  const mamba::Tensor tensor = file.read(file.entry(name));
  return std::vector<double>(tensor.data<float>(), tensor.data<float>() + tensor.count());
}

// The norm of the difference over the norm of what was expected.
double relative(const std::vector<double>& got, const std::vector<double>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return expected.empty() ? 0 : std::sqrt(difference / norm);
}

TEST_F(MambaLm, logits_and_states_are_within_1e5_of_float64_whole_and_in_chunks) {
  everywhere([&] {
    for (const char* model : models) {
      const Arguments all =
          Arguments{"logits", golden_folder(model), "--tokens", golden_values(model),
                    "--out",  path("out"),          "--dtype",  "f32"} +
          on_;
      std::vector<double> whole;
      for (const char* chunk : {"", "1", "7", "64", "1000"}) {
        SCOPED_TRACE(std::string(model) + " --chunk " + chunk);
        const Finished finished = run(*chunk == 0 ? all : all + Arguments{"--chunk", chunk});
        expect_success(finished, "");
        for (const char* name : {"logits", "conv_states", "ssm_states"}) {
          EXPECT_LT(relative(written_floats(path("out"), name), golden_doubles(model, name)), 1e-5)
              << name;
        }
        const std::vector<double> logits = written_floats(path("out"), "logits");
        if (whole.empty()) whole = logits;
        EXPECT_LT(relative(logits, whole), 5e-6);
      }
    }
  });
}

TEST_F(MambaLm, logits_have_the_shapes_promised_and_ids_may_be_i32) {
  const mamba::Tensor ids = mamba::Tensor::from<std::int32_t>({1, 2, 3, 4, 5, 6}, {2, 3});
  mamba::save_safetensors(path("ids"), {{"input_ids", ids}});
  expect_success(
      run({"logits", golden_folder("wide"), "--tokens", path("ids"), "--out", path("out")}), "");
  const mamba::SafetensorsFile file(path("out"));
  EXPECT_EQ(file.entry("logits").shape_text(), "[2, 3, 50]");
  EXPECT_EQ(file.entry("conv_states").shape_text(), "[2, 2, 60, 2]");
  EXPECT_EQ(file.entry("ssm_states").shape_text(), "[2, 2, 60, 100]");
}

TEST_F(MambaLm, logits_are_f32_whatever_the_dtype) {
  everywhere([&] {
    for (const char* dtype : {"bf16", "f16"}) {
      const Finished finished =
          run(Arguments{"logits", golden_folder("base"), "--tokens", golden_values("base"), "--out",
                        path("out"), "--dtype", dtype} +
              on_);
      expect_success(finished, "");
      const double error =
          relative(written_floats(path("out"), "logits"), golden_doubles("base", "logits"));
      EXPECT_LT(error, 0.1) << dtype;
      EXPECT_GT(error, 1e-5) << dtype;  // it really ran in it
      written_floats(path("out"), "conv_states");
    }
  });
}

// ---- info ---------------------------------------------------------------------------------------

std::string value_of(const std::string& out, const std::string& name) {
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name + " ", 0) == 0) return line.substr(line.find_last_of(' ') + 1);
  }
  return "(no line " + name + ")";
}

TEST_F(MambaLm, info_tells_the_sizes) {
  const Finished finished = run({"info", golden_folder("base")});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.err, "");
  const std::vector<std::pair<const char*, const char*>> expected = {{"architecture", "Mamba1"},
                                                                     {"d_model", "32"},
                                                                     {"n_layer", "3"},
                                                                     {"d_inner", "64"},
                                                                     {"d_state", "16"},
                                                                     {"d_conv", "4"},
                                                                     {"dt_rank", "2"},
                                                                     {"vocab", "96"},
                                                                     {"parameters", "32960"},
                                                                     {"dtype", "f32"},
                                                                     {"bytes of weights", "131840"},
                                                                     {"bytes of state", "14592"}};
  for (const auto& [name, value] : expected) EXPECT_EQ(value_of(finished.out, name), value) << name;
  EXPECT_EQ(value_of(finished.out, "fingerprint").size(), 32u);
  EXPECT_THAT(finished.out, HasSubstr(mamba::cpu_kernels() + "\n"));
  EXPECT_THAT(finished.out, ::testing::Not(HasSubstr("NaN")));
}

TEST_F(MambaLm, info_tells_the_architecture) {
  const Finished finished = run({"info", golden_folder("mamba2_groups")});
  ASSERT_EQ(finished.code, 0) << finished.err;
  const std::vector<std::pair<const char*, const char*>> expected = {
      {"architecture", "Mamba2"}, {"d_inner", "48"},      {"d_state", "8"}, {"heads", "6"},
      {"head_dim", "8"},          {"groups", "3"},        {"d_conv", "4"},
      {"dt_rank", "(no line dt_rank)"}, {"bytes of state", "5376"}};
  for (const auto& [name, value] : expected) EXPECT_EQ(value_of(finished.out, name), value) << name;
}

TEST_F(MambaLm, info_tells_the_dtype_of_the_file) {
  const Finished finished = run({"info", golden_folder("sharded_bf16")});
  EXPECT_EQ(value_of(finished.out, "dtype"), "bf16");
  EXPECT_EQ(value_of(finished.out, "parameters"), "32960");
  EXPECT_EQ(value_of(finished.out, "bytes of weights"), "75008");  // matrices bf16, the rest f32
  EXPECT_EQ(value_of(finished.out, "bytes of state"), "13440");
}

TEST_F(MambaLm, info_names_tensors_with_nan_or_infinity) {
  const std::string model = copy_of("base");
  const std::string file = model + "/model.safetensors";
  const auto spoil = [&](const char* name, float value) {
    const std::int64_t offset = mamba::SafetensorsFile(file).entry(name).offset;
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(offset);
    bytes.write(reinterpret_cast<const char*>(&value), sizeof value);
  };
  spoil("backbone.layers.1.mixer.D", NAN);
  spoil("backbone.layers.2.mixer.in_proj.weight", -INFINITY);
  const Finished finished = run({"info", model});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("backbone.layers.1.mixer.D (1 of 64 values)\n"));
  EXPECT_THAT(finished.out,
              HasSubstr("backbone.layers.2.mixer.in_proj.weight (1 of 4096 values)\n"));
  EXPECT_THAT(finished.out, ::testing::Not(HasSubstr("layers.0")));
}

// ---- errors -------------------------------------------------------------------------------------

TEST_F(MambaLm, version_and_help_go_to_standard_output) {
  expect_success(run({"--version"}), std::string("mamba-lm ") + mamba::version + "\n");
  for (const Arguments& help :
       {Arguments{"--help"}, {"generate", "--help"}, {"logits", "--help"}}) {
    const Finished finished = run(help);
    EXPECT_EQ(finished.code, 0);
    EXPECT_THAT(finished.out, HasSubstr("Usage"));
  }
}

// What a model spends on a text but its first byte, from logits of every byte.
double bits_per_byte(const std::string& file, const std::string& text) {
  const std::vector<double> logits = written_floats(file, "logits");
  double bits = 0;
  for (std::size_t i = 1; i < text.size(); ++i) {
    const double* row = &logits[(i - 1) * 256];
    double sum = 0;
    for (int k = 0; k < 256; ++k) sum += std::exp(row[k] - row[0]);
    bits += std::log2(sum) - (row[static_cast<unsigned char>(text[i])] - row[0]) / std::log(2.0);
  }
  return bits / static_cast<double>(text.size() - 1);
}

TEST_F(MambaLm, without_a_model_it_takes_the_one_that_comes_with_it) {
  const Finished info = run({"info"});
  EXPECT_EQ(info.code, 0) << info.err;
  EXPECT_THAT(info.out, HasSubstr("3103744"));
  const Finished text = run({"generate", "--prompt", "And the king said unto him, ", "-n", "200",
                             "--temperature", "0.5", "--seed", "1"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr(" the "));
  EXPECT_THAT(text.out, HasSubstr(" of "));

  // From the part of the text that it was not trained on.
  const std::string unseen = "Now faith is the substance of things hoped for, the evidence of";
  mamba::Tensor ids({1, static_cast<std::int64_t>(unseen.size())}, mamba::DType::i32);
  std::copy(unseen.begin(), unseen.end(), ids.data<std::int32_t>());
  mamba::save_safetensors(path("in"), {{"input_ids", ids}});
  const Finished logits = run({"logits", "--tokens", path("in"), "--out", path("out")});
  EXPECT_EQ(logits.code, 0) << logits.err;
  EXPECT_LT(bits_per_byte(path("out"), unseen), 2);  // 1.5 measured; bytes at random: 8
}

TEST_F(MambaLm, without_a_model_beside_it_that_is_an_error) {
  fs::copy(place_of(MAMBA_LM), path("mamba-lm"));
  expect_error(run({"info"}, path("mamba-lm")),
               "info: MODEL: expected a model folder, got none, and none beside this program");
}

// ---- bench --------------------------------------------------------------------------------------

std::vector<std::vector<double>> table_rows(const std::string& out) {
  std::vector<std::vector<double>> rows;
  std::istringstream text(out);
  for (std::string line; std::getline(text, line);) {
    if (line.rfind("| ", 0) != 0 || std::isdigit(line[2]) == 0) continue;
    rows.emplace_back();
    std::istringstream cells(line.substr(1));
    for (std::string cell; std::getline(cells, cell, '|');) rows.back().push_back(std::stod(cell));
  }
  return rows;
}

TEST_F(MambaLm, bench_prints_tables_whose_columns_agree) {
  everywhere([&] {
    const Finished finished =
        run(Arguments{"bench", golden_folder("base"), "--prompts", "5,9", "--batches", "1,3", "-n",
                      "4", "--repeats", "2", "--threads", "1"} +
            on_);
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_EQ(finished.err, "");
    const std::string place = on_.back() == "cpu"
                                  ? "cpu, f32, 1 threads, " + mamba::cpu_kernels() + ";"
                                  : on_.back() + ", f32;";
    EXPECT_THAT(finished.out, HasSubstr(golden_folder("base") + ", 0.0 M parameters, " + place));
    EXPECT_THAT(finished.out,
                HasSubstr("| batch | prompt | first token, ms | prompt tok/s |\n|---"));
    EXPECT_THAT(finished.out, HasSubstr("| batch | decode, ms/step | tok/s |\n|---"));
    const auto rows = table_rows(finished.out);
    ASSERT_EQ(rows.size(), 6u) << finished.out;
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(rows[i][0], i < 2 ? 1 : 3);
      EXPECT_EQ(rows[i][1], i % 2 == 0 ? 5 : 9);
      const double tokens = rows[i][0] * rows[i][1];  // times are printed to 0.01 ms
      EXPECT_NEAR(tokens / rows[i][3] * 1e3, rows[i][2], 0.006 + 1e-3 * rows[i][2]);
    }
    for (std::size_t i = 4; i < 6; ++i) {
      EXPECT_NEAR(rows[i][0] / rows[i][2] * 1e3, rows[i][1], 0.0006 + 1e-3 * rows[i][1]);
    }
  });
}

TEST_F(MambaLm, bench_of_a_shape_needs_no_weights) {
  fs::create_directories(path("shape"));
  fs::copy(golden_folder("base") + "/config.json", path("shape"));
  const Arguments small = {"--prompts", "3", "--batches", "2", "-n", "2", "--repeats", "1"};
  expect_error(run(Arguments{"bench", path("shape")} + small), "model.safetensors");
  const Finished finished =
      run(Arguments{"bench", path("shape"), "--random-weights", "--dtype", "bf16"} + small);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("(random weights)"));
  EXPECT_THAT(finished.out, HasSubstr("bf16"));
  EXPECT_EQ(table_rows(finished.out).size(), 2u);
}

TEST_P(MambaLmSignals, while_timing_end_after_a_whole_row) {
  Child child({"bench", golden_folder("base"), "--prompts", "64", "--repeats", "100000000"});
  child.wait_for_output(100);
  child.signal(GetParam());
  const Finished finished = child.finish();
  EXPECT_EQ(finished.code, 130) << finished.err;
  EXPECT_EQ(finished.out.back(), '\n');
}

TEST_F(MambaLm, a_wrong_command_line_is_one_line_and_exit_code_1) {
  const std::string base = golden_folder("base");
  const Arguments generating = {"generate", base, "--prompt-ids", "1,2"};
  expect_error(run({}), "subcommand");
  expect_error(run({"translate"}), "subcommand");
  expect_error(run({"generate", base}), "--prompt-ids");
  expect_error(run({"generate", base, "--prompt-ids", ""}), "--prompt-ids: expected a value");
  expect_error(run({"generate", base, "--prompt-ids", "1,two"}), "\"two\"");
  expect_error(run({"generate", base, "--prompt-ids", "99999999999"}), "--prompt-ids");
  expect_error(run({"logits", base}), "--tokens");
  expect_error(run(generating + Arguments{"--bogus"}), "--bogus");
  expect_error(run(generating + Arguments{"--prompt", "b"}), "--prompt");
  expect_error(run(generating + Arguments{"--dtype", "f64"}), "f64");
  expect_error(run(generating + Arguments{"--device", "gpu"}), "gpu");
  expect_error(run(generating + Arguments{"--as", "json"}), "json");
  for (const char* number : {"x", "-3", "1.5", "010", "99999999999999999999"}) {
    expect_error(run(generating + Arguments{"-n", number}), "-n: expected a whole number");
    expect_error(run(generating + Arguments{"--seed", number}), "--seed: expected a whole number");
  }
  expect_error(run(generating + Arguments{"--chunk", "0"}), "--chunk");
  expect_error(run(generating + Arguments{"--threads", "0"}), "--threads");
  expect_error(run({"bench", base, "--prompts", "128,x"}), "--prompts: expected a whole number");
  expect_error(run({"bench", base, "--batches", "0"}), "--batches: expected a whole number");
  expect_error(run(generating + Arguments{"--temperature", "warm"}), "--temperature");
  expect_error(run(generating + Arguments{"--temperature", "nan"}), "temperature");
  expect_error(run(generating + Arguments{"--top-p", "3"}), "top_p");
  expect_error(run(generating + Arguments{"--temperature", "0", "--top-k", "5"}), "top_k");
}

TEST_F(MambaLm, text_for_a_model_without_a_tokenizer_is_refused_plainly) {
  const std::string base = golden_folder("base");
  expect_error(run({"generate", base, "--prompt", "hello"}), "--prompt-ids");
  expect_error(run({"generate", base, "--prompt-ids", "1", "--as", "text"}), "--as");
  expect_error(run({"generate", base, "--prompt-ids", "1", "--stop", "."}), "--stop");
}

// ---- text through a tokenizer.json ------------------------------------------------------------

class MambaLmText : public MambaLm {
 protected:
  MambaLmText() : model_(path("model")) {
    mamba::LanguageModelConfig config;
    config.layer.d_model = 16;
    config.n_layer = 1;
    config.vocab_size = 726;
    mamba::LanguageModel::random(config, 1).save(model_);
    fs::copy_file(golden_folder("tokenizer") + "/tokenizer.json", model_ + "/tokenizer.json");
  }
  Finished sampled(const Arguments& more) const {
    return run(generate(model_, Arguments{"--seed", "4", "--ignore-eos"} + more));
  }
  std::string model_;
};

TEST_F(MambaLmText, goes_in_and_comes_out) {
  const Finished ids = sampled({"--prompt", "Größe: 你好", "-n", "40", "--as", "ids"});
  const auto tokenizer = mamba::Tokenizer::load(model_);
  mamba::TextStream stream;
  const std::string text = stream.push(tokenizer.decode(parsed(ids.out))) + stream.finish();
  expect_success(sampled({"--prompt", "Größe: 你好", "-n", "40"}), text);
  EXPECT_THAT(
      ids.err,
      HasSubstr("prompt " + std::to_string(tokenizer.encode("Größe: 你好").size()) + " tokens"));
  expect_success(sampled({"--prompt-ids", joined(tokenizer.encode("Größe: 你好"), ","), "-n", "40",
                          "--as", "text"}),
                 text);
  fs::rename(model_ + "/tokenizer.json", path("elsewhere.json"));
  expect_success(
      sampled({"--prompt", "Größe: 你好", "-n", "40", "--tokenizer", path("elsewhere.json")}),
      text);
}

// Wherever a process stops, its output ends with a whole character, and the next one goes on.
TEST_F(MambaLmText, is_the_same_in_two_processes_cut_anywhere) {
  const std::string text = sampled({"--prompt", "The state", "-n", "24"}).out;
  for (int first = 0; first <= 24; ++first) {
    const Finished before = sampled(
        {"--prompt", "The state", "-n", std::to_string(first), "--save-state", path("state")});
    mamba::TextStream whole;
    EXPECT_EQ(whole.push(before.out), before.out);
    EXPECT_EQ(whole.held(), "");
    const Finished after = run(generate(model_, {"--resume", path("state"), "--ignore-eos", "-n",
                                                 std::to_string(24 - first), "--as", "text"}));
    EXPECT_EQ(before.out + after.out, text) << first;
  }
}

TEST_F(MambaLmText, with_a_wrong_tokenizer_is_refused) {
  replace_in_file(model_ + "/tokenizer.json", "\"NFC\"", "\"NFKC\"");
  expect_error(sampled({"--prompt", "a"}), "normalizer.type");
  EXPECT_EQ(sampled({"--prompt-ids", "1"}).code, 0) << "ids need none";
  expect_error(sampled({"--prompt", "a", "--tokenizer", path("none.json")}),
               "expected a file that can be read");
}

// As when special tokens were added to a tokenizer and the model was left as it was.
TEST_F(MambaLm, a_token_that_the_model_has_no_row_for_is_an_error_where_it_occurs) {
  const auto with = [this](const char* prompt) {
    return run(generate(golden_folder("base"), {"--prompt", prompt, "-n", "1", "--tokenizer",
                                                golden_folder("tokenizer")}));
  };
  EXPECT_EQ(with("a").code, 0);
  expect_error(with("the"), "Generator::read: ids: expected 0 to 95, got 271");
}

TEST_F(MambaLm, ids_out_of_range_are_refused) {
  expect_error(run(generate(golden_folder("base"), {"--prompt-ids", "1,96"})),
               "expected 0 to 95, got 96");
  expect_error(run(generate(golden_folder("base"), {"--prompt-ids", "-1"})),
               "expected 0 to 95, got -1");
  const mamba::Tensor ids = mamba::Tensor::from<std::int32_t>({1, 96}, {1, 2});
  mamba::save_safetensors(path("ids"), {{"input_ids", ids}});
  expect_error(
      run({"logits", golden_folder("base"), "--tokens", path("ids"), "--out", path("out")}), "96");
  EXPECT_FALSE(fs::exists(path("out")));
}

TEST_F(MambaLm, bad_files_are_refused) {
  expect_error(run({"info", path("nothing")}), path("nothing"));
  expect_error(run({"info", path("")}), "config.json");
  const mamba::Tensor floats = mamba::Tensor::from<float>({1, 2}, {1, 2});
  const mamba::Tensor flat = mamba::Tensor::from<std::int32_t>({1, 2}, {2});
  const auto logits = [&](const std::vector<mamba::SafetensorsItem>& items) {
    mamba::save_safetensors(path("ids"), items);
    return run({"logits", golden_folder("base"), "--tokens", path("ids"), "--out", path("out")});
  };
  expect_error(logits({{"input_ids", floats}}), "F32");
  expect_error(logits({{"input_ids", flat}}), "[batch, time]");
  expect_error(logits({{"ids", flat}}), "input_ids");
  expect_error(run({"logits", golden_folder("base"), "--tokens", path("no"), "--out", path("out")}),
               path("no"));
}

TEST_F(MambaLm, a_place_that_cannot_be_written_is_refused_before_any_work) {
  for (const std::string& place : {path("no/state"), path(""), std::string("/dev/null")}) {
    // The model is not there either: it was not looked for yet.
    expect_error(run({"generate", path("nothing"), "--prompt-ids", "1", "--save-state", place}),
                 "--save-state");
    expect_error(run({"logits", path("nothing"), "--tokens", path("nothing"), "--out", place}),
                 "--out");
  }
}

TEST_F(MambaLm, a_state_that_is_cut_or_of_another_model_is_refused) {
  const std::string state = saved_state("base");
  expect_error(run(generate(golden_folder("sharded_bf16"), {"--resume", state, "--dtype", "f32"})),
               "model");
  expect_error(run(generate(golden_folder("wide"), {"--resume", state})), "model");
  expect_error(run(generate(golden_folder("base"), {"--resume", state, "--dtype", "bf16"})),
               "bf16");
  expect_error(run(generate(golden_folder("base"),
                            {"--resume", golden_folder("base") + "/model.safetensors"})),
               "state");
  const auto size = fs::file_size(state);
  for (const std::uintmax_t kept : {size - 1, size / 2, std::uintmax_t{100}, std::uintmax_t{0}}) {
    fs::resize_file(state, kept);
    expect_error(run(generate(golden_folder("base"), {"--resume", state})), state);
  }
}

}  // namespace
