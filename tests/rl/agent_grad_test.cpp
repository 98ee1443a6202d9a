// Gradients of the agents of mamba_rl, heads and encoder included, against an agent in double.
#include <cmath>
#include <map>

#include "each.hpp"
#include "model/layer_reference.hpp"
#include "model/slopes.hpp"
#include "rl/agent/mamba_controller.hpp"
#include "rl/options.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::DType;
using mamba::Shape;
using mamba::Stream;
using mamba::Tensor;
using mamba::testing::devices;
using mamba::testing::relative_error;
using mamba::testing::values;

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
TEST_EACH(RlAgent, GradientsAreTheSlopes, Device device) {
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

}  // namespace
}  // namespace mamba_rl
