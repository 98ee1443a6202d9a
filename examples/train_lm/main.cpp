// train-lm: a language model of bytes from a text, on the CPU or on one or several GPUs.
//
//   train-lm book.txt --out run          trains, writes run/config.json, run/model.safetensors
//   train-lm book.txt --out run --resume goes on from run/checkpoint as if it had never stopped;
//                                        without it a folder that has a run in it is refused
//   train-lm book.txt --out run --device cuda:0,cuda:1   shares the batch out to two GPUs
//   mamba-lm generate run --prompt "It was"
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "../programs/interrupt.hpp"
#include "../programs/model_flags.hpp"
#include "../programs/program.hpp"
#include "corpus.hpp"
#include "ranks.hpp"
#include "report.hpp"
#include "trainer.hpp"

namespace {

struct Flags {
  std::string text, out, separator, dtype = "f32", device = "cpu", prompt = "The ";
  double valid_share = 0.05;
  std::int64_t valid_bytes = 1 << 16;
  std::int64_t valid_every = 200, save_every = 200, sample_bytes = 200;
  std::int64_t stop_at = 0;
  bool resume = false, overwrite = false;
  TrainerOptions trainer;
};

void add_flags(CLI::App& app, Flags& flags) {
  app.option_defaults()->take_last();  // of a flag that is given twice
  TrainerOptions& t = flags.trainer;
  t.model.layer.d_model = 128;
  t.model.n_layer = 4;
  t.model.vocab_size = 256;
  const CLI::Validator count = whole_number<std::int64_t>(1);
  const CLI::Validator count_or_none = whole_number<std::int64_t>(0);
  const CLI::Validator not_negative = number("a number of at least 0", [](double v) {
    return v >= 0 && v <= std::numeric_limits<float>::max();
  });
  app.add_option("TEXT", flags.text, "A file, or a folder with files")->required();
  app.add_option("--out", flags.out, "Folder for model, checkpoint and metrics")->required();
  CLI::Option* resume =
      app.add_flag("--resume", flags.resume, "Go on from the checkpoint in --out");
  app.add_flag("--overwrite", flags.overwrite, "Begin anew in a folder that has a run in it")
      ->excludes(resume);
  app.add_option("--separator", flags.separator, "Text between documents of one file");
  app.add_option("--valid-share", flags.valid_share, "The last part of the text, for validation")
      ->check(
          number("a number from 0.0001 to 0.5", [](double v) { return v >= 0.0001 && v <= 0.5; }));
  app.add_option("--valid-bytes", flags.valid_bytes, "Bytes of it to validate with at most")
      ->check(count);
  app.add_option("--valid-every", flags.valid_every, "Steps between validations and samples")
      ->check(count);
  app.add_option("--save-every", flags.save_every, "Steps between checkpoints")->check(count);
  app.add_option("--prompt", flags.prompt, "What samples go on from");
  app.add_option("--sample-bytes", flags.sample_bytes, "Length of samples; 0: none")
      ->check(count_or_none);
  app.add_option("--steps", t.steps)->check(count);
  app.add_option("--stop-at", flags.stop_at, "Stop at this step, to be resumed; 0: at the last")
      ->check(count_or_none);
  app.add_option("--batch", t.batch)->check(count);
  app.add_option("--time", t.time, "Bytes a step and row")->check(count);
  app.add_option("--start", t.start, "A model of bytes to start from (its own sizes count)");
  app.add_option_function<std::string>(
         "--architecture",
         [&layer = t.model.layer](const std::string& name) {
           layer.mixer = name == "mamba2" ? mamba::MixerKind::mamba2 : mamba::MixerKind::mamba1;
         },
         "mamba1 (the default) or mamba2")
      ->check(CLI::IsMember({"mamba1", "mamba2"}));
  app.add_option("--d-model", t.model.layer.d_model)->check(count);
  app.add_option("--d-state", t.model.layer.d_state)->check(count);
  app.add_option("--head-dim", t.model.layer.head_dim, "Of mamba2")->check(count);
  app.add_option("--groups", t.model.layer.groups, "Of mamba2's heads")->check(count);
  app.add_option("--layers", t.model.n_layer)->check(count);
  app.add_flag("--gated-norm", t.model.layer.gated_norm, "LayerNorm before mamba1's gate");
  app.add_option("--rate", t.rate, "Learning rate after the warm-up")->check(not_negative);
  app.add_option("--last-rate", t.last_rate, "Learning rate at the end")->check(not_negative);
  app.add_option("--warmup", t.warmup, "Steps of it")->check(count_or_none);
  app.add_option("--weight-decay", t.adamw.weight_decay)->check(not_negative);
  app.add_option("--clip", t.adamw.max_norm, "Norm of all gradients; 0: not clipped")
      ->check(not_negative);
  app.add_option("--seed", t.seed)->check(whole_number<std::uint64_t>(0));
  app.add_flag("--recompute", t.recompute, "Less memory, a third more time");
  app.add_option("--dtype", flags.dtype)->check(CLI::IsMember({"f32", "bf16", "f16"}));
  app.add_option("--device", flags.device,
                 "cpu, cuda, cuda:N, or several that share the batch: cuda:0,cuda:1");
  app.add_option("--threads", t.threads, "CPU threads (default: one per core)")
      ->check(whole_number<int>(1));
}

void validate(Trainer& trainer, const Corpus& corpus, const Flags& flags, Report& report) {
  report.validation(trainer.steps(), trainer.validate(corpus.valid, flags.valid_bytes));
  if (flags.sample_bytes == 0 || flags.prompt.empty()) return;
  report.say("| " + flags.prompt + trainer.sample(flags.prompt, flags.sample_bytes, 0.7f));
}

std::vector<mamba::Device> devices_of(const std::string& list) {
  std::vector<mamba::Device> devices;
  std::istringstream names(list);
  for (std::string name; std::getline(names, name, ',');) {
    devices.push_back(mamba::Device::parse(name));
  }
  if (devices.empty()) throw mamba::Error("train-lm", "--device", "a device", "none");
  return devices;
}

// A run takes hours and is lost in a moment: never by a command that was only given again.
void refuse_another_run(const Flags& flags) {
  std::string what;
  if (flags.resume || flags.overwrite || !holds_a_run(flags.out, what)) return;
  throw mamba::Error("train-lm", "--out", "a folder without a run in it, --resume or --overwrite",
                     what);
}

// Whole, so that nobody goes on from the old checkpoint with the metrics of the new run.
void remove_run(const std::string& folder) {
  for (const char* name : {"checkpoint", "metrics.jsonl", "model.safetensors", "config.json"}) {
    std::filesystem::remove(std::filesystem::path(folder) / name);
  }
}

// One rank's run; what is said and written is the first rank's.
void train(const Flags& flags, const TrainerOptions& options, const Corpus& corpus, Ranks& ranks,
           CarriedStates& carried) {
  Trainer trainer(options, corpus.train, ranks, carried);
  const std::string checkpoint = flags.out + "/checkpoint";
  if (flags.resume) trainer.load(checkpoint);
  std::optional<Report> report;
  if (ranks.index() == 0) {
    if (flags.overwrite) remove_run(flags.out);
    report.emplace(flags.out + "/metrics.jsonl", trainer.steps(), options.steps,
                   options.batch * options.time);
    report->say("train-lm: " + std::to_string(trainer.model().parameter_count()) + " parameters, " +
                std::to_string(corpus.train.size()) + " bytes in " +
                std::to_string(corpus.train.documents()) + " documents");
    for (const std::string& folder : corpus.left_out) {
      report->say("train-lm: " + folder + " is left out: a run, and no text");
    }
  }
  const auto stopped = [&] { return ranks.all_reduce(interrupted() ? 1 : 0) > 0; };
  const std::int64_t end =
      flags.stop_at > 0 ? std::min(flags.stop_at, options.steps) : options.steps;
  while (trainer.steps() < end && !stopped()) {
    const StepResult result = trainer.step();
    const std::int64_t step = trainer.steps();
    if (report) report->step(step, result.loss, result.norm, result.rate);
    if (step % flags.valid_every == 0 && step < end) {
      if (report) validate(trainer, corpus, flags, *report);
      ranks.barrier();
    }
    if (step % flags.save_every == 0) trainer.save(checkpoint);
  }
  trainer.save(checkpoint);
  if (report) {
    trainer.model().save(flags.out);
    validate(trainer, corpus, flags, *report);
  }
  ranks.barrier();
}

int train(const Flags& flags) {
  catch_interrupts();
  refuse_another_run(flags);
  const std::vector<mamba::Device> devices = devices_of(flags.device);
  TrainerOptions options = flags.trainer;
  options.dtype = mamba::parse_storage_dtype(flags.dtype);
  const auto count = static_cast<std::int64_t>(devices.size());
  if (options.batch < count) {
    throw mamba::Error("train-lm", "--batch",
                       "a row for each of " + std::to_string(count) + " devices",
                       std::to_string(options.batch));
  }
  const Corpus corpus = Corpus::load(flags.text, flags.separator, flags.valid_share, flags.out);
  std::filesystem::create_directories(flags.out);
  CarriedStates carried(devices.size());
  const auto work = [&](Ranks& ranks) {
    TrainerOptions ours = options;
    ours.device = devices[static_cast<std::size_t>(ranks.index())];
    train(flags, ours, corpus, ranks, carried);
  };
  if (devices.size() == 1) {
    Ranks alone;
    work(alone);
  } else {
    on_several(devices, work);
  }
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a Mamba language model of bytes on a text.", "train-lm");
  Flags flags;
  add_flags(app, flags);
  return run_program(app, argc, argv, [&] { return train(flags); });
}
