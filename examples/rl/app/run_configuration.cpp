#include "rl/app/run_configuration.hpp"

#include <mamba/error.hpp>
#include <mamba/safetensors.hpp>

#include <map>
#include <sstream>

namespace mamba_rl {

namespace {

// "task 0, num_bits 4, horizon 6" as Trainer::save() writes it, by the first word of each part.
class Parts {
 public:
  Parts(const std::string& path, const mamba::SafetensorsFile& file, const std::string& name)
      : path_(path), name_(name) {
    const auto note = file.metadata().find("note.config." + name);
    if (note == file.metadata().end()) {
      throw mamba::FormatError(path, name, "the configuration of a run", "none");
    }
    for (std::size_t first = 0; first < note->second.size();) {
      const std::size_t end = std::min(note->second.find(", ", first), note->second.size());
      const std::string part = note->second.substr(first, end - first);
      const std::size_t space = std::min(part.find(' '), part.size());
      parts_[part.substr(0, space)] = part.substr(std::min(space + 1, part.size()));
      if (first == 0) first_ = part.substr(0, space);
      first = end + 2;
    }
  }

  const std::string& first() const { return first_; }  // the first word of all
  bool has(const std::string& word) const { return parts_.count(word) > 0; }
  const std::string& text(const std::string& word) const {
    const auto found = parts_.find(word);
    if (found == parts_.end())
      throw mamba::FormatError(path_, name_, "a value for " + word, "none");
    return found->second;
  }
  template <class T>
  void take(const std::string& word, T& value) const {
    std::istringstream number(text(word));
    if (number >> value) return;
    throw mamba::FormatError(path_, name_, "a number for " + word, text(word));
  }

 private:
  std::string path_, name_, first_;
  std::map<std::string, std::string> parts_;
};

}  // namespace

TrainerOptions configuration_of(const std::string& checkpoint) {
  const mamba::SafetensorsFile file(checkpoint);
  const Parts agent(checkpoint, file, "agent");
  const Parts environment(checkpoint, file, "environment");
  const Parts training(checkpoint, file, "training");
  TrainerOptions options;
  ControllerConfig& controller = options.controller;
  controller.kind = agent.first();
  controller.published_block = agent.text(agent.first()) == "(published block)";
  agent.take("width", controller.width);
  agent.take("layers", controller.layers);

  EnvironmentConfig& task = options.environment;
  int number = 0;
  environment.take("task", number);
  task.task = static_cast<Task>(number);
  environment.take("num_bits", task.num_bits);
  environment.take("horizon", task.delay);
  environment.take("noise", task.noise);
  environment.take("seed", task.seed);
  controller.seed = task.seed;

  PpoOptions& ppo = options.ppo;
  training.take("num_envs", options.num_envs);
  std::istringstream chunk(training.text("chunk_len"));  // "8 x 1", "8 x 2 across"
  std::string times, across;
  chunk >> options.chunk_len >> times >> options.chunks >> across;
  options.across_chunks = across == "across";
  training.take("epochs", ppo.epochs);
  training.take("minibatches", ppo.minibatches);
  training.take("gamma", ppo.gamma);
  training.take("lambda", ppo.lambda);
  training.take("clip", ppo.clip);
  training.take("value_weight", ppo.value_weight);
  training.take("entropy_weight", ppo.entropy_weight);
  training.take("rate", ppo.rate);
  training.take("max_norm", ppo.max_norm);
  training.take("epsilon", ppo.epsilon);
  training.take("cooling", ppo.cooling);
  options.curriculum = training.has("curriculum");
  return options;
}

}  // namespace mamba_rl
