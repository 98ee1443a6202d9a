// Agents of the example library mamba_rl: what resets do, that pieces are the whole, that it
// learns.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <map>

#include <mamba/safetensors.hpp>

#include "layer_reference.hpp"
#include "rl/mamba_controller.hpp"
#include "rl/rollout.hpp"
#include "rl/trainer.hpp"
#include "slopes.hpp"
#include "testing.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::DType;
using mamba::Shape;
using mamba::Stream;
using mamba::Tensor;
using mamba::testing::bits;
using mamba::testing::devices;
using mamba::testing::relative_error;
using mamba::testing::values;

const char* const controllers[] = {"mamba", "gru"};

TrainerOptions options_of(const std::string& controller, std::int32_t delay) {
  TrainerOptions options;
  options.environment.delay = delay;
  options.environment.seed = options.controller.seed = 2;
  options.controller.kind = controller;
  return options;
}

TrainerOptions small(const std::string& controller, std::int32_t delay) {
  TrainerOptions options = options_of(controller, delay);
  options.controller.width = 16;
  options.num_envs = 8;
  options.threads = 1;
  return options;
}

// What an agent says at the query, for every cue of two bits, with the same noise; the state is
// forgotten before the steps that `reset` names.
std::vector<std::vector<double>> answers(const std::string& controller, Device device,
                                         const std::vector<std::int32_t>& reset) {
  AgentConfig config;
  config.controller.kind = controller;
  config.controller.width = 16;
  config.observation = 5;
  config.actions = 4;
  const Agent agent(config, device);
  Stream stream(device);
  const auto time = static_cast<std::int64_t>(reset.size());
  std::vector<std::vector<double>> all;
  for (int cue = 0; cue < 4; ++cue) {
    std::vector<float> seen(static_cast<std::size_t>(time) * 5, 0.0f);
    for (std::size_t t = 0; t < static_cast<std::size_t>(time); ++t) {
      seen[5 * t + 4] = 0.1f * static_cast<float>(t % 3);
    }
    seen[0] = (cue & 1) != 0 ? 1.0f : -1.0f;
    seen[1] = (cue & 2) != 0 ? 1.0f : -1.0f;
    seen[2] = 1;
    seen[seen.size() - 2] = 1;
    const Tensor observations = Tensor::from(seen, {1, time, 5}).to(device);
    const Tensor begins = Tensor::from(reset, {1, time}).to(device);
    mamba::StackState state = agent.make_state(1);
    Tensor hidden({1, time, 16}, DType::f32, device), out({time, 5}, DType::f32, device);
    agent.remember(observations, state, begins, hidden, nullptr, stream);
    agent.decide(hidden.view().reshape({time, 16}), out, stream);
    stream.synchronize();
    all.push_back(values(out.view().rows(time - 1, 1)));
  }
  return all;
}

// Steps after which a fresh controller's units have forgotten all but 1/e, without anything seen.
std::vector<double> memories(const std::string& kind, float memory) {
  ControllerConfig config;
  config.kind = kind;
  config.memory = memory;
  const auto controller = Controller::make(config, Device::cpu());
  std::vector<double> steps;
  for (const mamba::Parameter& parameter : controller->parameters()) {
    const std::vector<double> weight = values(parameter.weight);
    if (parameter.name == "bias_hh") {
      for (std::size_t i = 64; i < 128; ++i) steps.push_back(1 + std::exp(weight[i]));
    } else if (parameter.name == "layers.0.dt_proj.bias") {  // its slowest state has A = -1
      for (const double bias : weight) steps.push_back(1 / std::log1p(std::exp(bias)));
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

TEST(RlController, FreshMemoriesAreSpreadUpToTheLongest) {
  for (const std::string kind : controllers) {
    for (const float memory : {1000.0f, 200000.0f}) {
      const std::vector<double> steps = memories(kind, memory);
      ASSERT_GE(steps.size(), 64U) << kind;
      const double shortest = kind == "mamba" ? 10 : 1.5;  // dt_max of the published recipe: 0.1
      EXPECT_GE(steps.front(), 0.99 * shortest) << kind;
      EXPECT_LE(steps.back(), 1.01 * memory) << kind;
      EXPECT_GE(steps.back(), memory / 4) << kind;
      // Evenly in the logarithm: half of them below the middle, within four deviations of it.
      const double middle = std::sqrt(shortest * memory);
      const auto below = std::lower_bound(steps.begin(), steps.end(), middle) - steps.begin();
      const double count = static_cast<double>(steps.size());
      EXPECT_NEAR(static_cast<double>(below), count / 2, 2 * std::sqrt(count)) << kind;
    }
  }
}

// Layers of a controller are controllers of one layer, of consecutive seeds.
TEST(RlController, LayersFollowEachOther) {
  const Shape shape{2, 7, 16};
  std::vector<float> numbers;
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    numbers.push_back(static_cast<float>(std::sin(0.7 * static_cast<double>(i))));
  }
  for (const Device device : devices()) {
    Stream stream(device);
    ControllerConfig config;
    config.width = 16;
    const auto first = Controller::make(config, device);
    config.seed = 1;
    const auto second = Controller::make(config, device);
    config.seed = 0;
    config.layers = 2;
    const auto both = Controller::make(config, device);
    const Tensor x = Tensor::from(numbers, shape).to(device);
    // y, then dx for dy = x.
    const auto run = [&](const std::vector<Controller*>& chain) {
      Tensor y = x.clone();
      std::vector<std::unique_ptr<ControllerTape>> tapes;
      for (Controller* controller : chain) {
        mamba::StackState state = controller->make_state(2);
        tapes.push_back(controller->make_tape());
        Tensor next(shape, DType::f32, device);
        controller->forward(y, state, {}, next, tapes.back().get(), stream);
        stream.synchronize();
        y = std::move(next);
      }
      Tensor dy = x.clone();
      for (std::size_t i = chain.size(); i-- > 0;) {
        Tensor dx(shape, DType::f32, device);
        chain[i]->backward(*tapes[i], dy, nullptr, dx, stream);
        stream.synchronize();
        dy = std::move(dx);
      }
      return std::make_pair(bits(y), bits(dy));
    };
    const auto [y, dx] = run({both.get()});
    const auto [expected_y, expected_dx] = run({first.get(), second.get()});
    EXPECT_EQ(y, expected_y) << device.name();
    EXPECT_EQ(dx, expected_dx) << device.name();
  }
}

// Each layer's y added to its x: one rounding, so to the bit.
TEST(RlController, AddsWhatEachLayerSaysToWhatItReads) {
  const Shape shape{2, 7, 16};
  mamba::testing::Random random(8);
  const std::vector<std::int32_t> resets = {0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
  for (const Device device : devices()) {
    for (const std::int64_t layers : {1, 2, 3}) {
      Stream stream(device);
      ControllerConfig config;
      config.width = 16;
      config.layers = layers;
      const MambaController controller(config, device);
      const Tensor reset = Tensor::from(resets, {2, 7}).to(device);
      const Tensor x = random.normal_tensor(shape).to(device);
      mamba::StackState state = controller.make_state(2), expected_state = controller.make_state(2);
      Tensor y(shape, DType::f32, device);
      controller.forward(x, state, reset, y, nullptr, stream);
      stream.synchronize();
      Tensor expected = x.to(Device::cpu());
      for (std::size_t i = 0; i < controller.layers().size(); ++i) {
        const Tensor read = expected.to(device);
        Tensor branch(shape, DType::f32, device);
        mamba::ForwardOptions options;
        options.reset = reset;
        controller.layers()[i].forward(read, expected_state.layers[i], branch, stream, options);
        stream.synchronize();
        const Tensor said = branch.to(Device::cpu());
        for (std::int64_t k = 0; k < shape.count(); ++k) {
          expected.data<float>()[k] += said.data<float>()[k];
        }
        EXPECT_EQ(bits(state.layers[i].conv), bits(expected_state.layers[i].conv));
        EXPECT_EQ(bits(state.layers[i].ssm), bits(expected_state.layers[i].ssm));
      }
      EXPECT_EQ(bits(y), bits(expected)) << device.name() << " " << layers;
    }
  }
}

// A reset one step late leaves an agent that answers every cue alike, to the bit: no training can
// make it right more often than by chance.
TEST(RlReset, OneStepLateMakesTheTaskUnsolvable) {
  for (const Device device : devices()) {
    for (const std::string controller : controllers) {
      const auto late = answers(controller, device, {0, 1, 0, 0, 0});
      const auto right = answers(controller, device, {1, 0, 0, 0, 0});
      for (std::size_t cue = 1; cue < 4; ++cue) {
        EXPECT_EQ(late[cue], late[0]) << controller;
        EXPECT_NE(right[cue], right[0]) << controller;
      }
    }
  }
}

// The rollout's steps are the training's sequence: the same policy, values and states.
TEST(RlCollect, StepsAreTheSequence) {
  for (const Device device : devices()) {
    for (const std::string controller : controllers) {
      AgentConfig config;
      config.controller.kind = controller;
      EnvironmentConfig task;
      task.delay = 5;
      config.observation = observation_size(task);
      config.actions = action_count(task);
      const Agent agent(config, device);
      Stream stream(device);
      Environments environments(task, 9, 0, device);
      mamba::StackState state = agent.make_state(9);
      Rollout rollout;
      for (int part = 0; part < 2; ++part) {  // the second begins within an episode
        rollout.prepare(agent, 9, 1, 17);
        collect(agent, environments, state, rollout, false, true, stream);
      }
      mamba::StackState again = rollout.initial[0].clone(stream);
      Tensor hidden({9, 17, agent.width()}, DType::f32, device);
      Tensor out({9 * 17, config.actions + 1}, DType::f32, device);
      agent.remember(rollout.observations, again, rollout.begins, hidden, nullptr, stream);
      agent.decide(hidden.view().reshape({9 * 17, agent.width()}), out, stream);
      stream.synchronize();
      // Products of other numbers of rows round differently, some hundred times.
      constexpr double bound = 200 * mamba::testing::f32_roundoff;
      EXPECT_LE(relative_error(values(rollout.values.view().reshape({9 * 17, 1})),
                               values(out.view().columns(config.actions, 1))),
                bound);
      EXPECT_LE(relative_error(values(state.layers[0].ssm), values(again.layers[0].ssm)), bound);
      const std::vector<double> logits = values(out), log_probs = values(rollout.log_probs);
      const Tensor actions = rollout.actions.to(Device::cpu());
      for (std::size_t i = 0; i < 9 * 17; ++i) {
        double sum = 0;
        for (std::size_t a = 0; a < 16; ++a) sum += std::exp(logits[i * 17 + a]);
        const auto action = static_cast<std::size_t>(actions.data<std::int32_t>()[i]);
        ASSERT_NEAR(log_probs[i], logits[i * 17 + action] - std::log(sum), 1e-5);
      }
    }
  }
}

// Fresh weights, of which many are zeros and ones, changed so that each matters.
void disturb(Agent& agent) {
  mamba::testing::Random random(7);
  for (const mamba::Parameter& parameter : agent.parameters()) {
    std::vector<float> changed;
    for (const double value : values(parameter.weight)) {
      changed.push_back(static_cast<float>(value + random.normal(0.1)));
    }
    const Tensor there = Tensor::from(changed, parameter.weight.shape()).to(agent.device());
    Stream stream(agent.device());
    mamba::copy(there, parameter.weight, stream);
    stream.synchronize();
  }
}

// An agent in double, plain loops around LayerReference or a GRU's formula, sharing nothing with
// the library but the weights.
class AgentReference {
 public:
  explicit AgentReference(Agent& agent) {
    const auto* stack = dynamic_cast<const MambaController*>(&agent.controller());
    if (stack != nullptr) {
      for (const mamba::Layer& layer : stack->layers()) layers_.emplace_back(layer);
    }
    for (const mamba::Parameter& parameter : agent.parameters()) {
      weight(parameter.name) = values(parameter.weight);
    }
  }

  // By the name that Agent::parameters() gives; for tests that move it.
  std::vector<double>& weight(const std::string& name) {
    const std::string prefix = "controller.layers.";
    if (name.rfind(prefix, 0) != 0) return weights_[name];
    const std::size_t dot = name.find('.', prefix.size());
    return layers_[std::stoul(name.substr(prefix.size()))].weights[name.substr(dot + 1)];
  }

  // Logits and values of every step; conv and ssm are those of each layer and move on.
  std::vector<double> forward(const std::vector<double>& seen, std::int64_t batch,
                              const std::vector<std::int32_t>& reset,
                              std::vector<std::vector<double>>& conv,
                              std::vector<std::vector<double>>& ssm) const {
    std::vector<double> x = linear(seen, "encoder", "encoder_bias", at("norm").size());
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const std::vector<double> branch = layers_[l].forward(x, batch, reset, conv[l], ssm[l]);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += branch[i];
    }
    if (layers_.empty()) x = gru(x, batch, reset, ssm[0]);
    return linear(layer_norm(x), "heads", "heads_bias", at("heads_bias").size());
  }

 private:
  const std::vector<double>& at(const std::string& name) const {
    static const std::vector<double> none;
    const auto found = weights_.find(name);
    return found == weights_.end() ? none : found->second;
  }

  std::vector<double> linear(const std::vector<double>& x, const std::string& matrix,
                             const std::string& shift, std::size_t out) const {
    const std::vector<double>&w = at(matrix), &bias = at(shift);
    const std::size_t in = w.size() / out;
    std::vector<double> y;
    for (std::size_t row = 0; row < x.size() / in; ++row) {
      for (std::size_t o = 0; o < out; ++o) {
        double sum = bias.empty() ? 0 : bias[o];
        for (std::size_t i = 0; i < in; ++i) sum += w[o * in + i] * x[row * in + i];
        y.push_back(sum);
      }
    }
    return y;
  }

  std::vector<double> layer_norm(std::vector<double> x) const {
    const std::vector<double>&weight = at("norm"), &bias = at("norm_bias");
    const std::size_t n = weight.size();
    for (std::size_t row = 0; row < x.size(); row += n) {
      double mean = 0, squares = 0;
      for (std::size_t i = 0; i < n; ++i) mean += x[row + i] / static_cast<double>(n);
      for (std::size_t i = 0; i < n; ++i) squares += (x[row + i] - mean) * (x[row + i] - mean);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + Agent::norm_epsilon);
      for (std::size_t i = 0; i < n; ++i) {
        x[row + i] = (x[row + i] - mean) * scale * weight[i] + bias[i];
      }
    }
    return x;
  }

  // The formula of gru.hpp; `state` is h of every batch row and moves on.
  std::vector<double> gru(const std::vector<double>& x, std::int64_t batch,
                          const std::vector<std::int32_t>& reset,
                          std::vector<double>& state) const {
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const std::size_t n = state.size() / static_cast<std::size_t>(batch);
    const std::size_t time = reset.size() / static_cast<std::size_t>(batch);
    const std::vector<double> in = linear(x, "controller.weight_ih", "controller.bias_ih", 3 * n);
    std::vector<double> y;
    for (std::size_t step = 0; step < reset.size(); ++step) {
      const auto from = state.begin() + static_cast<std::ptrdiff_t>(step / time * n);
      std::vector<double> h(from, from + static_cast<std::ptrdiff_t>(n));
      if (reset[step] != 0) h.assign(n, 0.0);
      const std::vector<double> g = linear(h, "controller.weight_hh", "controller.bias_hh", 3 * n);
      const double* i = in.data() + step * 3 * n;
      for (std::size_t c = 0; c < n; ++c) {
        const double r = sigmoid(i[c] + g[c]), z = sigmoid(i[n + c] + g[n + c]);
        h[c] = (1 - z) * std::tanh(i[2 * n + c] + r * g[2 * n + c]) + z * h[c];
      }
      std::copy(h.begin(), h.end(), from);
      y.insert(y.end(), h.begin(), h.end());
    }
    return y;
  }

  std::vector<mamba::testing::LayerReference> layers_;
  std::map<std::string, std::vector<double>> weights_;
};

// Six steps in three environments: one without a reset, one with a reset inside and one that begins
// with one; random numbers for what is seen, for the states and for the gradients that come in.
struct Lesson {
  static constexpr std::int64_t batch = 3, time = 6;
  const std::vector<std::int32_t> resets = {0, 0, 0, 0, 0, 0,  //
                                            0, 0, 0, 1, 0, 0,  //
                                            1, 0, 0, 0, 0, 1};
  Tensor seen, reset, dout;
  mamba::StackState state, dstate;

  explicit Lesson(const Agent& agent) {
    mamba::testing::Random random(21);
    const AgentConfig& config = agent.config();
    seen = random.normal_tensor({batch, time, config.observation}).to(agent.device());
    dout = random.normal_tensor({batch, time, config.actions + 1}).to(agent.device());
    reset = Tensor::from(resets, {batch, time}).to(agent.device());
    for (mamba::StackState* each : {&state, &dstate}) {
      *each = agent.make_state(batch);
      for (mamba::MambaState& layer : each->layers) {
        layer.conv = random.normal_tensor(layer.conv.shape()).to(agent.device());
        layer.ssm = random.normal_tensor(layer.ssm.shape()).to(agent.device());
      }
    }
  }
};

struct Learned {
  Tensor out;
  mamba::StackState dstate;
};

// Forward and back in pieces of so many steps; the gradients of the weights are the agent's.
Learned study(Agent& agent, const Lesson& lesson, const std::vector<std::int64_t>& pieces) {
  Stream stream(agent.device());
  const std::int64_t outputs = lesson.dout.dim(2), width = agent.width();
  Learned learned{Tensor(lesson.dout.shape(), DType::f32, agent.device()), lesson.dstate.clone()};
  mamba::StackState state = lesson.state.clone();
  std::vector<AgentTape> tapes(pieces.size());
  std::vector<Tensor> hidden;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::int64_t count = pieces[i], rows = Lesson::batch * count;
    hidden.emplace_back(Shape{Lesson::batch, count, width}, DType::f32, agent.device());
    Tensor out({Lesson::batch, count, outputs}, DType::f32, agent.device());
    agent.remember(lesson.seen.view().steps(first, count), state,
                   lesson.reset.view().columns(first, count), hidden[i], &tapes[i], stream);
    agent.decide(hidden[i].view().reshape({rows, width}), out.view().reshape({rows, outputs}),
                 stream);
    mamba::copy(out, learned.out.view().steps(first, count), stream);
    stream.synchronize();
    first += count;
  }
  mamba::BackwardOptions options;
  for (std::size_t i = pieces.size(); i-- > 0;) {
    const std::int64_t count = pieces[i], rows = Lesson::batch * count;
    first -= count;
    Tensor dout({Lesson::batch, count, outputs}, DType::f32, agent.device());
    Tensor dhidden(hidden[i].shape(), DType::f32, agent.device());
    mamba::copy(lesson.dout.view().steps(first, count), dout, stream);
    agent.decide_backward(hidden[i].view().reshape({rows, width}),
                          dout.view().reshape({rows, outputs}),
                          dhidden.view().reshape({rows, width}), stream, options);
    agent.remember_backward(tapes[i], dhidden, &learned.dstate, stream, options);
    stream.synchronize();
    options.accumulate = true;
  }
  return learned;
}

// The conv's or the ssm's part of every layer.
std::vector<std::vector<double>> parts(const mamba::StackState& state,
                                       Tensor mamba::MambaState::*part) {
  std::vector<std::vector<double>> all;
  for (const mamba::MambaState& layer : state.layers) all.push_back(values(layer.*part));
  return all;
}

// What the gradients of `study` are of, in double: its outputs and its last state, each times the
// gradient that comes in there.
struct LessonLoss {
  using Parts = std::vector<std::vector<double>>;
  AgentReference reference;
  std::vector<std::int32_t> resets;
  std::vector<double> seen, dout;
  Parts conv, ssm, dconv, dssm;

  LessonLoss(Agent& agent, const Lesson& lesson)
      : reference(agent),
        resets(lesson.resets),
        seen(values(lesson.seen)),
        dout(values(lesson.dout)),
        conv(parts(lesson.state, &mamba::MambaState::conv)),
        ssm(parts(lesson.state, &mamba::MambaState::ssm)),
        dconv(parts(lesson.dstate, &mamba::MambaState::conv)),
        dssm(parts(lesson.dstate, &mamba::MambaState::ssm)) {}

  std::vector<double> out(Parts& last_conv, Parts& last_ssm) const {
    return reference.forward(seen, Lesson::batch, resets, last_conv, last_ssm);
  }
  double operator()() const {
    Parts last_conv = conv, last_ssm = ssm;
    double sum = product(dout, out(last_conv, last_ssm));
    for (std::size_t l = 0; l < ssm.size(); ++l) {
      sum += product(dconv[l], last_conv[l]) + product(dssm[l], last_ssm[l]);
    }
    return sum;
  }

 private:
  static double product(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
};

void expect_learned(Agent& agent, const std::vector<std::int64_t>& pieces) {
  using mamba::testing::expect_slopes;
  const Lesson lesson(agent);
  const Learned learned = study(agent, lesson, pieces);
  LessonLoss loss(agent, lesson);
  // Encoder, norm and heads are not more stages than a layer.
  const auto depth = static_cast<double>(loss.ssm.size() + 1);
  const double bound = depth * mamba::testing::gradient_bound(DType::f32);
  auto last_conv = loss.conv, last_ssm = loss.ssm;
  EXPECT_LE(relative_error(values(learned.out), loss.out(last_conv, last_ssm)), bound);
  for (std::size_t l = 0; l < loss.ssm.size(); ++l) {
    const std::string layer = std::to_string(l);
    const mamba::MambaState& dinitial = learned.dstate.layers[l];
    expect_slopes("dconv " + layer, loss.conv[l], dinitial.conv, loss, bound);
    expect_slopes("dssm " + layer, loss.ssm[l], dinitial.ssm, loss, bound);
  }
  for (const mamba::Parameter& parameter : agent.parameters()) {
    Stream stream(agent.device());
    Tensor gradient(parameter.gradient.shape(), DType::f32, agent.device());
    mamba::copy(parameter.gradient, gradient, stream);
    stream.synchronize();
    expect_slopes(parameter.name, loss.reference.weight(parameter.name), gradient, loss, bound);
  }
}

// Of every parameter and of the initial state, whole and cut; the gradients of the second run take
// the place of those of the first.
TEST(RlAgent, GradientsAreTheSlopes) {
  for (const Device device : devices()) {
    for (const std::string controller : controllers) {
      for (const std::int64_t layers : {1, 2}) {
        if (controller == "gru" && layers > 1) continue;  // there is one
        for (const bool published : {false, true}) {
          SCOPED_TRACE(device.name() + " " + controller + " " + std::to_string(layers) +
                       (published ? " published" : ""));
          AgentConfig config;
          config.controller.kind = controller;
          config.controller.width = 16;
          config.controller.layers = layers;
          config.controller.published_block = published;
          config.controller.memory = 20;  // so that what is forgotten shows within the steps
          config.observation = 5;
          config.actions = 4;
          Agent agent(config, device);
          disturb(agent);
          expect_learned(agent, {6});
          expect_learned(agent, {4, 2});
        }
      }
    }
  }
}

struct Lived {
  Rollout rollout;
  mamba::StackState state;
};

// Two rollouts of two chunks each, of which the later ones begin within episodes.
Lived live(const Agent& agent, const EnvironmentConfig& task, decltype(collect)* how) {
  constexpr std::int64_t batch = 9, length = 17;
  Stream stream(agent.device());
  Environments environments(task, batch, 3, agent.device());
  Lived lived;
  lived.state = agent.make_state(batch);
  for (int part = 0; part < 2; ++part) {
    lived.rollout.prepare(agent, batch, 2, length);
    how(agent, environments, lived.state, lived.rollout, false, true, stream);
  }
  stream.synchronize();
  return lived;
}

// Where one kernel steps a whole chunk: the same episodes, actions and, but for rounding, numbers.
void expect_alike(Lived& one, Lived& other) {
  for (auto member : {&Rollout::begins, &Rollout::decisions, &Rollout::actions, &Rollout::rewards,
                      &Rollout::ends}) {
    EXPECT_EQ(bits(one.rollout.*member), bits(other.rollout.*member));
  }
  const auto near = [](const Tensor& a, const Tensor& b) {
    // As in StepsAreTheSequence.
    EXPECT_LE(relative_error(values(a), values(b)), 200 * mamba::testing::f32_roundoff);
  };
  const std::vector<double> seen = values(one.rollout.observations);
  const std::vector<double> expected = values(other.rollout.observations);
  constexpr double four_ulps = 8 * mamba::testing::f32_roundoff;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    ASSERT_NEAR(seen[i], expected[i], four_ulps * std::abs(expected[i]));
  }
  near(one.rollout.log_probs, other.rollout.log_probs);
  near(one.rollout.values, other.rollout.values);
  near(one.rollout.last_values, other.rollout.last_values);
  near(one.state.layers[0].conv, other.state.layers[0].conv);
  near(one.state.layers[0].ssm, other.state.layers[0].ssm);
  near(one.rollout.initial[1].layers[0].ssm, other.rollout.initial[1].layers[0].ssm);
}

TEST(RlCollect, AKernelOfAllStepsIsTheSteps) {
  mamba::testing::each_cuda_device([](Device device) {
    for (const std::string controller : controllers) {
      for (const std::int64_t width : {16, 32, 64}) {
        for (const Task kind : {Task::delayed_cue, Task::t_maze}) {
          SCOPED_TRACE(controller + " " + std::to_string(width));
          EnvironmentConfig task;
          task.task = kind;
          task.delay = 5;
          AgentConfig config;
          config.controller.kind = controller;
          config.controller.width = width;
          config.controller.published_block = kind == Task::t_maze;
          config.observation = observation_size(task);
          config.actions = action_count(task);
          Agent agent(config, device);
          disturb(agent);
          Lived kernel = live(agent, task, &collect);
          Lived steps = live(agent, task, &collect_by_steps);
          expect_alike(kernel, steps);
        }
      }
    }
  });
}

// What is saved under names that begin so, all in a row.
std::vector<double> saved(const std::string& checkpoint, const std::string& prefix) {
  const mamba::SafetensorsFile file(checkpoint);
  std::vector<double> all;
  for (const mamba::SafetensorsEntry& entry : file.entries()) {
    if (entry.name.rfind(prefix, 0) != 0) continue;
    const std::vector<double> one = values(file.read(entry));
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

// Two chunks with gradients across them are one chunk of twice the length; without, they are not.
TEST(RlTrainer, GradientsAcrossChunksAreThoseOfTheWhole) {
  for (const Device device : devices()) {
    for (const std::string controller : controllers) {
      const mamba::testing::TemporaryFolder folder;
      const auto gradients = [&](std::int64_t chunks, bool across) {
        TrainerOptions options = small(controller, 10);
        options.device = device;
        options.curriculum = false;
        options.chunks = chunks;
        options.chunk_len = 24 / chunks;
        options.across_chunks = across;
        options.ppo.epochs = options.ppo.minibatches = 1;
        options.ppo.max_norm = 0;
        Trainer trainer(options);
        trainer.update();
        trainer.save(folder.file("checkpoint"));
        // After one step the first moment is a tenth of the gradient.
        return saved(folder.file("checkpoint"), "m.encoder");
      };
      const std::vector<double> whole = gradients(1, false);
      EXPECT_LE(relative_error(gradients(3, true), whole), 1e-5);
      EXPECT_GE(relative_error(gradients(3, false), whole), 1e-3);
    }
  }
}

TEST(RlTrainer, GoesOnToTheBit) {
  for (const Device device : devices()) {
    for (const std::string controller : controllers) {
      const mamba::testing::TemporaryFolder folder;
      TrainerOptions options = small(controller, 9);
      options.device = device;
      options.chunk_len = 7;  // chunks end within episodes
      options.first_delay = 3;
      options.good = 0.01;  // the delay grows on the way
      Trainer whole(options), first(options), second(options);
      for (int i = 0; i < 14; ++i) whole.update();
      for (int i = 0; i < 6; ++i) first.update();
      first.save(folder.file("middle"), {{"mine", "kept"}});
      EXPECT_EQ(second.load(folder.file("middle")).at("mine"), "kept");
      for (int i = 0; i < 8; ++i) second.update();
      EXPECT_EQ(second.delay(), whole.delay());
      EXPECT_GT(whole.delay(), 3);
      whole.save(folder.file("whole"));
      second.save(folder.file("second"));
      const auto bytes = [&](const char* name) {
        std::ifstream file(folder.file(name), std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(file), {});
      };
      EXPECT_EQ(bytes("whole"), bytes("second")) << controller;
    }
  }
}

TEST(RlTrainer, TheRateFallsOnceTheHorizonIsMastered) {
  const mamba::testing::TemporaryFolder folder;
  TrainerOptions options = small("gru", 4);
  options.first_delay = 4;
  options.good = 0.001;  // mastered as soon as there is a window of updates
  options.ppo.cooling = 2;
  Trainer trainer(options), later(options);
  for (int update = 1; update <= 6; ++update) {
    EXPECT_EQ(trainer.rate(), options.ppo.rate * 2.0f / (2.0f + std::max(0, update - 4)));
    trainer.update();
  }
  trainer.save(folder.file("checkpoint"));
  later.load(folder.file("checkpoint"));
  EXPECT_EQ(later.rate(), trainer.rate());
  EXPECT_LT(later.rate(), options.ppo.rate / 2);

  options.ppo.cooling = 0;
  Trainer constant(options);
  for (int update = 1; update <= 6; ++update) constant.update();
  EXPECT_EQ(constant.rate(), options.ppo.rate);
}

TEST(RlTrainer, AnEvaluationLeavesTheTrainingAlone) {
  const mamba::testing::TemporaryFolder folder;
  Trainer plain(small("mamba", 6)), evaluated(small("mamba", 6));
  for (int i = 0; i < 3; ++i) {
    plain.update();
    evaluated.update();
    const Score score = evaluated.evaluate(9, i % 2 == 0, 40);
    EXPECT_EQ(score.queries, 40);
  }
  plain.save(folder.file("plain"));
  evaluated.save(folder.file("evaluated"));
  EXPECT_EQ(saved(folder.file("plain"), ""), saved(folder.file("evaluated"), ""));
}

// Updates until the agent is right in at least this share of a thousand episodes.
double learned(Trainer& trainer, double enough, int most) {
  double success = 0;
  for (int update = 1; update <= most && success < enough; ++update) {
    trainer.update();
    if (update % 10 == 0) {
      success = trainer.evaluate(trainer.options().environment.delay, true).success();
    }
  }
  return success;
}

TEST(RlTrainer, LearnsToRememberForTwentySteps) {
  for (const Device device : devices()) {
    for (const std::string controller : controllers) {
      TrainerOptions options = options_of(controller, 20);
      options.device = device;
      Trainer trainer(options);
      EXPECT_GE(learned(trainer, 0.9, 200), 0.9) << device.name() << " " << controller;
    }
  }
}

TEST(RlTrainer, LearnsTheSmallTasks) {
  for (const Task task : {Task::bandit, Task::repeat_last, Task::t_maze}) {
    TrainerOptions options = options_of("mamba", 6);
    options.environment.task = task;
    options.environment.num_bits = 2;
    options.chunk_len = 24;
    options.controller.width = 32;
    options.curriculum = task == Task::t_maze;
    Trainer trainer(options);
    EXPECT_GE(learned(trainer, 0.9, 150), 0.9) << static_cast<int>(task);
  }
}

TEST(RlTrainer, WhatCannotBeIsNamed) {
  using mamba::testing::expect_error;
  expect_error<mamba::ArgumentError>("Controller: kind: expected mamba or gru, got lstm",
                                     [] { Trainer trainer(small("lstm", 3)); });
  expect_error<mamba::ArgumentError>("mamba-rl: horizon: expected 1 to 268435456, got 0",
                                     [] { Trainer trainer(small("gru", 0)); });
  TrainerOptions large = small("gru", 3);
  large.chunk_len = 200000000;
  EXPECT_THROW(Trainer trainer(large), mamba::Error);
}

}  // namespace
}  // namespace mamba_rl
