// mamba-lm bench: how fast a model reads prompts and writes tokens here, as tables in Markdown.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mamba/device.hpp>
#include <mamba/generator.hpp>
#include <mamba/version.hpp>

#include "../programs/interrupt.hpp"
#include "../programs/memory.hpp"
#include "../programs/output.hpp"
#include "commands.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Ids = std::vector<std::int32_t>;

struct BenchFlags {
  ModelFlags model;
  std::vector<std::int64_t> prompts = {128, 512, 2048};
  std::vector<std::int64_t> batches = {1, 8};
  std::int64_t tokens = 64;
  int repeats = 5;
  bool random_weights = false;
};

// All rows of both tables, before anything is timed: the largest batch with the longest prompt.
void check_fits(const BenchFlags& flags, const mamba::LanguageModelConfig& config,
                mamba::DType dtype, mamba::Device device) {
  const auto largest = [](const std::vector<std::int64_t>& list) {
    return static_cast<double>(*std::max_element(list.begin(), list.end()));
  };
  const double batch = largest(flags.batches);
  check_memory("bench", "--batches", "that many sequences",
               batch * bytes_of_generator(config, dtype), device);
  check_memory("bench", "--prompts", "the largest batch of the longest prompt",
               batch * bytes_of_generator(config, dtype) +
                   bytes_of_call(config, batch * largest(flags.prompts)),
               device);
}

// Only the configuration is read: speed does not depend on what the weights are.
mamba::LanguageModel with_random_weights(const ModelFlags& flags) {
  const std::string path = flags.path("bench") + "/config.json";
  std::ifstream file(path);
  if (!file) throw mamba::FormatError("bench", path, "a configuration", "no such file");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const mamba::LanguageModelConfig config = mamba::parse_config(text, path);
  const mamba::DType dtype =
      flags.dtype.empty() ? mamba::DType::f32 : mamba::parse_storage_dtype(flags.dtype);
  // The weights are made in the host's memory, wherever they go then.
  check_memory("bench", "--random-weights", "the weights of this shape",
               bytes_of_model(config, dtype), mamba::Device::cpu());
  return mamba::LanguageModel::random(config, 1, dtype, mamba::Device::parse(flags.device));
}

Ids some_prompt(std::int64_t length, std::int64_t vocab) {
  Ids ids;
  for (std::int64_t i = 0; i < length; ++i) {
    ids.push_back(static_cast<std::int32_t>((7919 * i + 13) % vocab));
  }
  return ids;
}

// `batch` sequences that go through the model together.
struct Batch {
  mamba::GeneratorPool pool;
  std::vector<mamba::Generator> members;
  mamba::Generator::Group group;

  Batch(const mamba::LanguageModel& model, std::int64_t batch, mamba::Stream& stream)
      : pool(model, batch, stream) {
    for (std::int64_t i = 0; i < batch; ++i) members.push_back(pool.make());
    for (mamba::Generator& member : members) group.push_back(&member);
  }
};

// The median time of `work` in seconds; the first run, in which memory is taken and kernels are
// loaded, does not count. Nothing after an interrupt.
template <class Work>
std::optional<double> median_seconds(int repeats, Work work) {
  std::vector<double> seconds;
  for (int i = 0; i <= repeats; ++i) {
    if (interrupted()) return std::nullopt;
    seconds.push_back(work());
  }
  seconds.erase(seconds.begin());
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void show_prefill(const BenchFlags& flags, const mamba::LanguageModel& model,
                  mamba::Stream& stream) {
  std::printf("| batch | prompt | first token, ms | prompt tok/s |\n|---:|---:|---:|---:|\n");
  for (const std::int64_t batch : flags.batches) {
    for (const std::int64_t length : flags.prompts) {
      const std::vector<Ids> prompts(static_cast<std::size_t>(batch),
                                     some_prompt(length, model.config().vocab_size));
      const auto seconds = median_seconds(flags.repeats, [&] {
        Batch fresh(model, batch, stream);
        stream.synchronize();
        return seconds_of([&] {
          mamba::Generator::read(fresh.group, prompts);
          mamba::Generator::next(fresh.group);
        });
      });
      if (!seconds) return;
      std::printf("| %lld | %lld | %.2f | %.0f |\n", static_cast<long long>(batch),
                  static_cast<long long>(length), *seconds * 1e3,
                  static_cast<double>(batch * length) / *seconds);
      write_output("bench", "");
    }
  }
}

void show_decode(const BenchFlags& flags, const mamba::LanguageModel& model,
                 mamba::Stream& stream) {
  std::printf("\n| batch | decode, ms/step | tok/s |\n|---:|---:|---:|\n");
  mamba::GenerateOptions options;
  options.max_tokens = flags.tokens;
  options.ignore_eos = true;
  for (const std::int64_t batch : flags.batches) {
    Batch writers(model, batch, stream);
    mamba::Generator::read(writers.group,
                           std::vector<Ids>(static_cast<std::size_t>(batch),
                                            some_prompt(8, model.config().vocab_size)));
    const auto seconds = median_seconds(flags.repeats, [&] {
      return seconds_of([&] { mamba::Generator::generate(writers.group, {options}); });
    });
    if (!seconds) return;
    const double step = *seconds / static_cast<double>(flags.tokens);
    std::printf("| %lld | %.3f | %.1f |\n", static_cast<long long>(batch), step * 1e3,
                static_cast<double>(batch) / step);
    write_output("bench", "");
  }
}

int bench(const BenchFlags& flags) {
  catch_interrupts();
  const mamba::LanguageModel model =
      flags.random_weights ? with_random_weights(flags.model) : flags.model.load("bench");
  check_fits(flags, model.config(), model.dtype(), model.device());
  mamba::Stream stream = flags.model.stream();
  std::printf("mamba-lm %s, %s%s, %.1f M parameters, %s, %s", mamba::version,
              flags.model.path("bench").c_str(), flags.random_weights ? " (random weights)" : "",
              static_cast<double>(model.parameter_count()) / 1e6, model.device().name().c_str(),
              mamba::name_of(model.dtype()));
  if (model.device().is_cpu()) {
    std::printf(", %d threads, %s", stream.threads(), mamba::cpu_kernels().c_str());
  }
  std::printf("; medians of %d\n\n", flags.repeats);
  write_output("bench", "");
  show_prefill(flags, model, stream);
  if (!interrupted()) show_decode(flags, model, stream);
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

void add_bench(CLI::App& app, Command& command) {
  CLI::App* sub = app.add_subcommand(
      "bench", "Time to the first token and tokens per second, as tables in Markdown");
  const auto flags = std::make_shared<BenchFlags>();
  flags->model.add_folder(*sub);
  sub->add_option("--prompts", flags->prompts, "Prompt lengths: 128,512,2048")
      ->delimiter(',')
      ->check(whole_number<std::int64_t>(1));
  sub->add_option("--batches", flags->batches, "Sequences at once: 1,8")
      ->delimiter(',')
      ->check(whole_number<std::int64_t>(1));
  sub->add_option("-n", flags->tokens, "Steps that are timed together")
      ->check(whole_number<std::int64_t>(1))
      ->capture_default_str();
  sub->add_option("--repeats", flags->repeats, "Timed runs of each; one more comes before")
      ->check(whole_number<int>(1))
      ->capture_default_str();
  sub->add_flag("--random-weights", flags->random_weights,
                "Only config.json is read: a model of that shape");
  flags->model.add_placement(*sub);
  sub->callback([flags, &command] { command = [flags] { return bench(*flags); }; });
}
