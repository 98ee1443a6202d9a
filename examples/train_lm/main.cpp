// train-lm: a language model of bytes from a text, on the CPU or on CUDA.
//
//   train-lm book.txt --out run          trains, writes run/config.json, run/model.safetensors
//   train-lm book.txt --out run --resume goes on from run/checkpoint as if it had never stopped
//   mamba-lm generate run --prompt "It was"
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "../programs/interrupt.hpp"
#include "corpus.hpp"
#include "report.hpp"
#include "trainer.hpp"

namespace {

constexpr int exit_error = 1;
constexpr int exit_interrupted = 130;  // 128 + SIGINT, as a shell reports it

struct Flags {
  std::string text, out, separator, dtype = "f32", device = "cpu", prompt = "The ";
  double valid_share = 0.05;
  std::int64_t valid_bytes = 1 << 16;
  std::int64_t valid_every = 200, save_every = 200, sample_bytes = 200;
  std::int64_t stop_at = 0;
  bool resume = false;
  TrainerOptions trainer;
};

void add_flags(CLI::App& app, Flags& flags) {
  app.option_defaults()->take_last();  // of a flag that is given twice
  TrainerOptions& t = flags.trainer;
  t.model.layer.d_model = 128;
  t.model.n_layer = 4;
  t.model.vocab_size = 256;
  app.add_option("TEXT", flags.text, "A file, or a folder with files")->required();
  app.add_option("--out", flags.out, "Folder for model, checkpoint and metrics")->required();
  app.add_flag("--resume", flags.resume, "Go on from the checkpoint in --out");
  app.add_option("--separator", flags.separator, "Text between documents of one file");
  app.add_option("--valid-share", flags.valid_share, "The last part of the text, for validation")
      ->check(CLI::Range(0.0001, 0.5));
  app.add_option("--valid-bytes", flags.valid_bytes, "Bytes of it to validate with at most");
  app.add_option("--valid-every", flags.valid_every, "Steps between validations and samples")
      ->check(CLI::PositiveNumber);
  app.add_option("--save-every", flags.save_every, "Steps between checkpoints")
      ->check(CLI::PositiveNumber);
  app.add_option("--prompt", flags.prompt, "What samples go on from");
  app.add_option("--sample-bytes", flags.sample_bytes, "Length of samples; 0: none");
  app.add_option("--steps", t.steps)->check(CLI::PositiveNumber);
  app.add_option("--stop-at", flags.stop_at, "Stop at this step, to be resumed; 0: at the last");
  app.add_option("--batch", t.batch)->check(CLI::PositiveNumber);
  app.add_option("--time", t.time, "Bytes a step and row")->check(CLI::PositiveNumber);
  app.add_option("--start", t.start, "A model of bytes to start from (its own sizes count)");
  app.add_option("--d-model", t.model.layer.d_model)->check(CLI::PositiveNumber);
  app.add_option("--d-state", t.model.layer.d_state)->check(CLI::PositiveNumber);
  app.add_option("--layers", t.model.n_layer)->check(CLI::PositiveNumber);
  app.add_flag("--gated-norm", t.model.layer.gated_norm, "LayerNorm before the gate");
  app.add_option("--rate", t.rate, "Learning rate after the warm-up");
  app.add_option("--last-rate", t.last_rate, "Learning rate at the end");
  app.add_option("--warmup", t.warmup, "Steps of it");
  app.add_option("--weight-decay", t.adamw.weight_decay);
  app.add_option("--clip", t.adamw.max_norm, "Norm of all gradients; 0: not clipped");
  app.add_option("--seed", t.seed);
  app.add_flag("--recompute", t.recompute, "Less memory, a third more time");
  app.add_option("--dtype", flags.dtype)->check(CLI::IsMember({"f32", "bf16", "f16"}));
  app.add_option("--device", flags.device, "cpu, cuda or cuda:N");
  app.add_option("--threads", t.threads, "CPU threads (default: one per core)");
}

void validate(Trainer& trainer, const Corpus& corpus, const Flags& flags, Report& report) {
  report.validation(trainer.steps(), trainer.validate(corpus.valid, flags.valid_bytes));
  if (flags.sample_bytes == 0 || flags.prompt.empty()) return;
  report.say("| " + flags.prompt + trainer.sample(flags.prompt, flags.sample_bytes, 0.7f));
}

int train(Flags flags) {
  catch_interrupts();
  flags.trainer.dtype = mamba::parse_storage_dtype(flags.dtype);
  flags.trainer.device = mamba::Device::parse(flags.device);
  const Corpus corpus = Corpus::load(flags.text, flags.separator, flags.valid_share);
  Trainer trainer(flags.trainer, corpus.train);
  std::filesystem::create_directories(flags.out);
  const std::string checkpoint = flags.out + "/checkpoint";
  if (flags.resume) trainer.load(checkpoint);
  Report report(flags.out + "/metrics.jsonl", trainer.steps(), flags.trainer.steps,
                flags.trainer.batch * flags.trainer.time);
  report.say("train-lm: " + std::to_string(trainer.model().parameters()) + " parameters, " +
             std::to_string(corpus.train.size()) + " bytes in " +
             std::to_string(corpus.train.documents()) + " documents");
  const std::int64_t end =
      flags.stop_at > 0 ? std::min(flags.stop_at, flags.trainer.steps) : flags.trainer.steps;
  while (trainer.steps() < end && !interrupted()) {
    const StepResult result = trainer.step();
    const std::int64_t step = trainer.steps();
    report.step(step, result.loss, result.norm, result.rate);
    if (step % flags.valid_every == 0 && step < end) {
      validate(trainer, corpus, flags, report);
    }
    if (step % flags.save_every == 0) trainer.save(checkpoint);
  }
  trainer.save(checkpoint);
  trainer.model().save(flags.out);
  validate(trainer, corpus, flags, report);
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a Mamba language model of bytes on a text.", "train-lm");
  Flags flags;
  add_flags(app, flags);
  try {
    app.parse(argc, argv);
    return train(flags);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    std::fprintf(stderr, "train-lm: %s (train-lm --help tells more)\n", error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train-lm: %s\n", error.what());
  }
  return exit_error;
}
