#include "rl/ppo/trainer.hpp"

#include <mamba/check.hpp>
#include <mamba/train_ops.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iomanip>
#include <numeric>
#include <sstream>

#include "rl/memory.hpp"
#include "rl/ppo/ppo.hpp"
#include "rl/random.hpp"

namespace mamba_rl {

namespace {

using mamba::DType;
using mamba::Tensor;
using mamba::TensorView;

constexpr const char* where = "mamba-rl";
// Environments of the evaluation: beyond any that train.
constexpr std::int32_t first_evaluated = 1 << 28;
constexpr std::uint32_t for_shuffling = 17;  // beside environment.hpp's purposes

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What cannot fit is refused before anything is allocated.
void check_memory(const std::string& what, double wanted, mamba::Device device) {
  const std::int64_t there = memory_of(device);
  if (wanted <= static_cast<double>(there)) return;
  std::ostringstream bytes;
  bytes << "about " << std::fixed << std::setprecision(0) << wanted << " bytes";
  throw mamba::Error(where, what,
                     "what fits in the " + std::to_string(there) + " bytes of " + device.name(),
                     bytes.str());
}

EnvironmentConfig first_task(const TrainerOptions& options) {
  EnvironmentConfig config = options.environment;
  if (options.curriculum) config.delay = std::min(options.first_delay, config.delay);
  return config;
}

AgentConfig agent_config(const TrainerOptions& options) {
  return {options.controller, observation_size(options.environment),
          action_count(options.environment)};
}

void check_memory(const TrainerOptions& options) {
  const AgentConfig agent = agent_config(options);
  const std::int64_t rows =
      (options.num_envs + options.ppo.minibatches - 1) / options.ppo.minibatches;
  const auto chunks = static_cast<double>(options.chunks);
  const double decisions =
      decisions_of(first_task(options), options.chunk_len) * static_cast<double>(rows) * chunks;
  check_memory("chunk_len " + std::to_string(options.chunk_len) + " of " +
                   std::to_string(options.num_envs) + " environments",
               chunks * (bytes_of_rollout(agent, options.num_envs, options.chunk_len) +
                         bytes_of_training(agent, rows, options.chunk_len)) +
                   bytes_of_decisions(agent, decisions) + bytes_of_agent(agent) +
                   3 * bytes_of_states(agent, options.num_envs),
               options.device);
}

TrainerOptions completed(TrainerOptions options) {
  EnvironmentConfig& environment = options.environment;
  mamba::check::range(where, "horizon", environment.delay, 1, std::int64_t{1} << 28);
  mamba::check::range(where, "num_bits", environment.num_bits, 1, 16);
  mamba::check::range(where, "num_envs", options.num_envs, 1, 1 << 20);
  mamba::check::range(where, "minibatches", options.ppo.minibatches, 1, options.num_envs);
  constexpr float least_memory = 10;  // steps: mamba's dt is at most 0.1
  if (!(options.controller.memory >= least_memory)) {
    throw mamba::ArgumentError(where, "memory", "10 steps or more",
                               std::to_string(options.controller.memory));
  }
  mamba::check::range(where, "chunks", options.chunks, 1, 1 << 20);
  if (options.chunk_len == 0) options.chunk_len = episode_steps(environment);
  check_memory(options);
  constexpr std::int64_t most_steps = std::int64_t{1} << 31;  // lists of steps are of i32
  mamba::check::range(where, "chunk_len", options.chunk_len, 1,
                      (most_steps - 1) / options.num_envs / options.chunks);
  return options;
}

mamba::AdamWOptions adamw(const PpoOptions& ppo) {
  mamba::AdamWOptions options;
  options.beta2 = 0.999f;
  options.weight_decay = 0;
  options.max_norm = ppo.max_norm;
  return options;
}

}  // namespace

Trainer::Trainer(const TrainerOptions& options)
    : options_(completed(options)),
      stream_(options_.device, options_.threads),
      environments_(first_task(options_), static_cast<std::int32_t>(options_.num_envs), 0,
                    options_.device),
      agent_(agent_config(options_), options_.device),
      optimizer_(agent_.parameters(), adamw(options_.ppo)),
      state_(agent_.make_state(options_.num_envs)) {
  tapes_.resize(static_cast<std::size_t>(options_.chunks));
  rollout_.prepare(agent_, options_.num_envs, options_.chunks, options_.chunk_len);
}

UpdateResult Trainer::update() {
  UpdateResult result;
  result.delay = delay();
  const auto start = std::chrono::steady_clock::now();
  roll_out(result);
  result.rollout_seconds = seconds_since(start);
  Tensor sums = Tensor::zeros({5}, DType::f32, options_.device);
  std::int64_t counted = 0;
  for (const auto& row : decided_) counted += static_cast<std::int64_t>(row.size());
  for (std::int64_t epoch = 0; epoch < options_.ppo.epochs; ++epoch) {
    const std::vector<std::int32_t> order = shuffled(epoch);
    const std::int64_t parts = options_.ppo.minibatches, count = options_.num_envs;
    for (std::int64_t part = 0; part < parts; ++part) {
      learn({order.begin() + count * part / parts, order.begin() + count * (part + 1) / parts},
            sums);
    }
  }
  ++progress_.updates;
  result.update = progress_.updates;
  result.env_steps = progress_.env_steps;
  stream_.synchronize();
  uploads_.clear();
  const Tensor host = sums.to(mamba::Device::cpu());
  const double terms =
      static_cast<double>(std::max<std::int64_t>(1, counted * options_.ppo.epochs));
  double* const means[] = {&result.policy_loss, &result.value_loss, &result.entropy,
                           &result.divergence, &result.clipped};
  for (int i = 0; i < 5; ++i) *means[i] = host.data<float>()[i] / terms;
  result.gradient_norm = optimizer_.steps() > 0 ? optimizer_.gradient_norm(stream_) : 0;
  if (!std::isfinite(result.gradient_norm)) {
    throw mamba::Error(where, "update " + std::to_string(updates()), "a finite gradient",
                       "one that is not, first of " + optimizer_.first_not_finite(stream_));
  }
  result.training_seconds = seconds_since(start) - result.rollout_seconds;
  advance_curriculum(result.score);
  return result;
}

void Trainer::roll_out(UpdateResult& result) {
  collect(agent_, environments_, state_, rollout_, false, true, stream_);
  Advantages advantages;
  advantages.rewards = rollout_.rewards;
  advantages.values = rollout_.values;
  advantages.ends = rollout_.ends;
  advantages.last_values = rollout_.last_values;
  advantages.advantages = rollout_.advantages;
  advantages.returns = rollout_.returns;
  advantages.gamma = options_.ppo.gamma;
  advantages.lambda = options_.ppo.lambda;
  run(advantages, stream_);
  NormaliseAdvantages normalise;
  normalise.decisions = rollout_.decisions;
  normalise.advantages = rollout_.advantages;
  normalise.epsilon = options_.ppo.epsilon;
  run(normalise, stream_);
  stream_.synchronize();
  progress_.env_steps += rollout_.batch() * rollout_.time();
  const Tensor decisions = rollout_.decisions.to(mamba::Device::cpu());
  result.score = score(decisions, rollout_.rewards.to(mamba::Device::cpu()));
  decided_.assign(static_cast<std::size_t>(rollout_.batch()), {});
  const auto* decision = decisions.data<std::int32_t>();
  for (auto& row : decided_) {
    for (std::int32_t t = 0; t < rollout_.time(); ++t) {
      if (*decision++ != irrelevant) row.push_back(t);
    }
  }
}

void Trainer::advance_curriculum(const Score& score) {
  if (score.queries == 0) return;  // a chunk shorter than an episode
  const std::int32_t horizon = options_.environment.delay;
  std::vector<double>& last = progress_.successes;
  last.push_back(score.success());
  const auto window = static_cast<std::size_t>(options_.window);
  if (last.size() > window) last.erase(last.begin());
  const double sum = std::accumulate(last.begin(), last.end(), 0.0);
  const double mean = last.size() < window ? 0 : sum / static_cast<double>(window);
  if (delay() == horizon) {
    if (progress_.mastered > 0 || mean > options_.good) ++progress_.mastered;
    return;
  }
  if (mean <= options_.good) return;
  last.clear();
  environments_.restart(std::min(2 * delay(), horizon), stream_);
  state_.reset(stream_);
}

float Trainer::rate() const {
  const float rate = options_.ppo.rate, cooling = options_.ppo.cooling;
  return cooling > 0 ? rate * cooling / (cooling + static_cast<float>(progress_.mastered)) : rate;
}

// Environments in an order of their own for every epoch.
std::vector<std::int32_t> Trainer::shuffled(std::int64_t epoch) const {
  std::vector<std::int32_t> order(static_cast<std::size_t>(options_.num_envs));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = order.size(); i > 1; --i) {
    const RandomWords words =
        philox(options_.environment.seed,
               {static_cast<std::uint32_t>(progress_.updates), static_cast<std::uint32_t>(epoch),
                static_cast<std::uint32_t>(i), for_shuffling});
    std::swap(order[i - 1], order[words.a % i]);
  }
  return order;
}

Score Trainer::evaluate(std::int32_t delay, bool greedy, std::int64_t episodes) {
  constexpr std::int64_t most_steps = 1024;  // of a chunk: the state carries what was before
  EnvironmentConfig config = options_.environment;
  config.delay = delay;
  check_memory("an evaluation of " + std::to_string(episodes) + " episodes",
               bytes_of_rollout(agent_.config(), episodes, most_steps) +
                   bytes_of_states(agent_.config(), episodes),
               options_.device);
  Environments environments(config, static_cast<std::int32_t>(episodes), first_evaluated,
                            options_.device);
  mamba::StackState state = agent_.make_state(episodes);
  Rollout rollout;
  Score total;
  for (std::int64_t done = 0; done < episode_steps(config);) {
    const std::int64_t time = std::min(most_steps, episode_steps(config) - done);
    rollout.prepare(agent_, episodes, 1, time);
    collect(agent_, environments, state, rollout, greedy, false, stream_);
    stream_.synchronize();
    const Score part =
        score(rollout.decisions.to(mamba::Device::cpu()), rollout.rewards.to(mamba::Device::cpu()));
    total.queries += part.queries;
    total.right += part.right;
    done += time;
  }
  return total;
}

std::map<std::string, std::string> Trainer::configuration() const {
  const EnvironmentConfig& e = options_.environment;
  const PpoOptions& p = options_.ppo;
  std::ostringstream environment, training;
  environment << "task " << static_cast<int>(e.task) << ", num_bits " << e.num_bits << ", horizon "
              << e.delay << ", noise " << e.noise << ", seed " << e.seed;
  training << "num_envs " << options_.num_envs << ", chunk_len " << options_.chunk_len << " x "
           << options_.chunks << (options_.across_chunks ? " across" : "") << ", epochs "
           << p.epochs << ", minibatches " << p.minibatches << ", gamma " << p.gamma << ", lambda "
           << p.lambda << ", clip " << p.clip << ", value_weight " << p.value_weight
           << ", entropy_weight " << p.entropy_weight << ", rate " << p.rate << ", max_norm "
           << p.max_norm << ", epsilon " << p.epsilon << ", cooling " << p.cooling
           << (options_.curriculum ? ", curriculum" : ", fixed horizon");
  return {{"agent", agent_.config().to_string()},
          {"environment", environment.str()},
          {"training", training.str()}};
}

void Trainer::save(const std::string& path, const std::map<std::string, std::string>& notes) {
  mamba::TrainingProgress saved;
  saved.seed = options_.environment.seed;
  saved.draws = static_cast<std::uint64_t>(progress_.env_steps);
  saved.notes = notes;
  for (const auto& [key, value] : configuration()) saved.notes["config." + key] = value;
  saved.positions = {progress_.updates, delay(), progress_.mastered};
  // Successes as whole queries would not do: a double goes through text exactly in hexadecimal.
  std::ostringstream successes;
  successes << std::hexfloat;
  for (const double success : progress_.successes) successes << success << ' ';
  saved.notes["successes"] = successes.str();
  stream_.synchronize();
  const Tensor states = environments_.states().to(mamba::Device::cpu());
  const auto* number = states.data<std::int32_t>();
  saved.positions.insert(saved.positions.end(), number, number + states.count());
  mamba::save_training(path, optimizer_, &state_, saved);
}

std::map<std::string, std::string> Trainer::load(const std::string& path) {
  const mamba::TrainingProgress found = mamba::load_training(path, optimizer_, &state_);
  const auto note = [&](const std::string& key) {
    const auto at = found.notes.find(key);
    return at == found.notes.end() ? std::string("nothing") : at->second;
  };
  for (const auto& [key, value] : configuration()) {
    const std::string got = note("config." + key);
    if (got != value) throw mamba::FormatError(path, key, value, got);
  }
  Tensor& states = environments_.states();
  const auto expected = static_cast<std::size_t>(3 + states.count());
  if (found.positions.size() != expected) {
    throw mamba::FormatError(path, "positions", std::to_string(expected),
                             std::to_string(found.positions.size()));
  }
  progress_.updates = found.positions[0];
  progress_.env_steps = static_cast<std::int64_t>(found.draws);
  progress_.mastered = found.positions[2];
  progress_.successes.clear();
  std::istringstream successes(note("successes"));
  for (std::string text; successes >> text;)
    progress_.successes.push_back(std::strtod(text.c_str(), nullptr));
  environments_.restart(static_cast<std::int32_t>(found.positions[1]), stream_);
  std::vector<std::int32_t> numbers;
  for (std::size_t i = 3; i < expected; ++i) {
    numbers.push_back(static_cast<std::int32_t>(found.positions[i]));
  }
  mamba::copy(Tensor::from(numbers, states.shape()), states, stream_);
  stream_.synchronize();
  return found.notes;
}

}  // namespace mamba_rl
