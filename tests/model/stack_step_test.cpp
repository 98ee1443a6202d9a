// One step of a whole stack, which CUDA takes at once where it can: as near to the truth as
// the layers one after the other, whoever shares the batch, from and to the rows of a map.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <mamba/graph.hpp>
#include <mamba/stack.hpp>

#include "detail/mamba1_step.hpp"
#include "detail/mamba2_step.hpp"
#include "each.hpp"
#include "model/layer_reference.hpp"
#include "ops/limited_devices.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::LayerReference;
using testing::Random;
using testing::values;

// Of Mamba-2 where it has heads.
struct Size {
  std::int64_t d_model, d_inner, dt_rank, n_layer;
  std::int64_t head_dim = 0, d_state = 0;
};
// Few channels: not a block for every multiprocessor.
constexpr Size small_sizes[] = {{96, 224, 32, 2}, {96, 256, 0, 2, 32, 128}};

// Random weights that make every part of a layer matter.
Stack lively_stack(const Size& size, DType dtype, Device device, bool conv_bias = true) {
  LanguageModelConfig config;
  config.layer.d_model = size.d_model;
  config.layer.d_inner = size.d_inner;
  config.layer.dt_rank = size.dt_rank;
  config.layer.mixer = size.head_dim == 0 ? MixerKind::mamba1 : MixerKind::mamba2;
  config.layer.head_dim = size.head_dim;
  config.layer.d_state = size.d_state;
  config.layer.use_conv_bias = conv_bias;
  config.n_layer = size.n_layer;
  config.vocab_size = 8;
  config = config.resolved();
  Random random(5);
  StackWeights weights;
  for (std::int64_t i = 0; i < size.n_layer; ++i) {
    LayerWeights layer;
    LayerWeights::each(
        layer, config.layer, dtype,
        [&](const std::string& name, Tensor& tensor, const Shape& shape, DType type) {
          const bool matrix = shape.rank() == 2 && type == dtype;
          const double deviation = matrix ? 1 / std::sqrt(static_cast<double>(shape[1])) : 0.5;
          tensor = random.normal_tensor(shape, type, deviation);
          if (name == "A_log") tensor = random.uniform_tensor(shape, -1, 2);
          tensor = tensor.to(device);
        });
    weights.layers.push_back(std::move(layer));
    weights.norms.push_back(random.uniform_tensor({size.d_model}, 0.5, 1.5).to(device));
  }
  weights.norm_f = random.uniform_tensor({size.d_model}, 0.5, 1.5).to(device);
  return Stack(config, std::move(weights));
}

// Not nothing: random states.
StackState lively_state(const Stack& stack, std::int64_t rows, std::uint64_t seed) {
  Random random(seed);
  StackState state = stack.make_state(rows);
  for (MambaState& layer : state.layers) {
    layer.conv = random.normal_tensor(layer.conv.shape(), layer.conv.dtype()).to(stack.device());
    layer.ssm = random.normal_tensor(layer.ssm.shape()).to(stack.device());
  }
  return state;
}

StackState row_of(const StackState& state, std::int32_t row) {
  return state.gather(Tensor::from<std::int32_t>({row}, {1}).to(state.layers.front().ssm.device()));
}

// What a step makes: y and, layer by layer, both states, as doubles.
struct Made {
  std::vector<std::vector<double>> parts;

  Made(std::vector<double> y, const StackState& state) : parts{std::move(y)} {
    for (const MambaState& layer : state.layers) {
      parts.push_back(values(layer.conv));
      parts.push_back(values(layer.ssm));
    }
  }
  explicit Made(std::vector<double> y) : parts{std::move(y)} {}
};

// In double; with `round_to` what each stage stores is rounded as LayerReference says.
Made reference(const Stack& stack, const Tensor& x, const StackState& state,
               const std::vector<std::int32_t>& reset,
               std::optional<DType> round_to = std::nullopt) {
  const std::vector<double> input = values(x);
  const auto width = static_cast<std::size_t>(x.dim(2));
  std::vector<double> residual = input;
  const auto normed = [&](std::size_t i) {
    const std::vector<double> weight = values(stack.norm(i));
    std::vector<double> y(residual.size());
    for (std::size_t row = 0; row < residual.size() / width; ++row) {
      double squares = 0;
      for (std::size_t k = 0; k < width; ++k) squares += std::pow(residual[row * width + k], 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
      for (std::size_t k = 0; k < width; ++k) {
        y[row * width + k] = residual[row * width + k] * scale * weight[k];
      }
    }
    if (!round_to) return y;
    const std::vector<float> exact(y.begin(), y.end());
    return values(Tensor::from(exact).to(Device::cpu(), *round_to));
  };
  std::vector<std::vector<double>> states;
  for (std::size_t i = 0; i < stack.size(); ++i) {
    std::vector<double> conv = values(state.layers[i].conv), ssm = values(state.layers[i].ssm);
    const std::vector<double> branch =
        LayerReference(stack.layer(i), round_to).forward(normed(i), x.dim(0), reset, conv, ssm);
    for (std::size_t k = 0; k < residual.size(); ++k) residual[k] += branch[k];
    states.push_back(std::move(conv));
    states.push_back(std::move(ssm));
  }
  Made made(normed(stack.size()));
  for (auto& one : states) made.parts.push_back(std::move(one));
  return made;
}

// The step as it is taken, and layer by layer, which keeping step states asks for.
Made step(const Stack& stack, const Tensor& x, StackState state, bool layer_by_layer,
          SequenceOptions sequence = {}) {
  StackSteps steps;
  StackOptions options;
  static_cast<SequenceOptions&>(options) = sequence;
  if (layer_by_layer) options.steps = &steps;
  Tensor y(x.shape(), x.dtype(), x.device());
  Stream stream(x.device());
  stack.forward(x, state, y, stream, options);
  stream.synchronize();
  return Made(values(y), state);
}

// How far some values are from what they should be.
struct Distance {
  double squares = 0, largest = 0;
  std::size_t count = 0;

  Distance() = default;
  Distance(const std::vector<double>& a, const std::vector<double>& b) { add(a, b); }
  void add(const std::vector<double>& a, const std::vector<double>& b) {
    EXPECT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double apart = std::abs(a[i] - b[i]);
      EXPECT_TRUE(std::isfinite(apart)) << i;
      squares += apart * apart;
      largest = std::max(largest, apart);
    }
    count += a.size();
  }
  double root_mean_square() const { return std::sqrt(squares / static_cast<double>(count)); }
};

Tensor input(const Stack& stack, std::int64_t rows, std::uint64_t seed = 3) {
  const std::int64_t d_model = stack.norm(0).dim(0);
  return Random(seed).normal_tensor({rows, 1, d_model}, stack.dtype(), 2).to(stack.device());
}

// A step is no further from the truth than the layers one after the other, whose
// roundings are of the same size but others. And those are no further than twice what rounding each
// stage's output to storage costs, and the f32 sums (80 roundings a layer).
//
// Of `runs` inputs and states together: the roundings of one small run are too few to compare.
void expect_as_near(const Stack& stack, std::int64_t rows, const std::vector<std::int32_t>& reset,
                    int runs) {
  struct Part {
    Distance ours, layers, storage, size;
  };
  std::vector<Part> parts(1 + 2 * stack.size());
  SequenceOptions options;
  Tensor resets;
  if (!reset.empty()) {
    resets = Tensor::from(reset, {rows, 1}).to(stack.device());
    options.reset = resets;
  }
  for (std::uint64_t run = 0; run < static_cast<std::uint64_t>(runs); ++run) {
    const Tensor x = input(stack, rows, 3 + run);
    const StackState state = lively_state(stack, rows, 9 + run);
    const Made got = step(stack, x, state.clone(), false, options);
    const Made layers = step(stack, x, state.clone(), true, options);
    const Made truth = reference(stack, x, state, reset);
    const Made stored = reference(stack, x, state, reset, stack.dtype());
    ASSERT_EQ(got.parts.size(), parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const std::vector<double>& exact = truth.parts[i];
      parts[i].ours.add(got.parts[i], exact);
      parts[i].layers.add(layers.parts[i], exact);
      parts[i].storage.add(stored.parts[i], exact);
      parts[i].size.add(exact, std::vector<double>(exact.size()));
    }
  }
  const double sums = 80 * static_cast<double>(stack.size()) * testing::f32_roundoff;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto& [ours, layers, storage, size] = parts[i];
    EXPECT_LE(ours.root_mean_square(), 1.2 * layers.root_mean_square() + 1e-6) << "part " << i;
    EXPECT_LE(ours.largest, 2 * layers.largest + 1e-5) << "part " << i;
    EXPECT_LE(layers.root_mean_square(),
              2 * storage.root_mean_square() + sums * size.root_mean_square())
        << "part " << i;
  }
}

TEST_EACH(StackStep, IsAsNearToTheTruthAsLayerByLayer, Device device,
          testing::OneOf<DType::bf16, DType::f32> dtype) {
  // Few channels (not a block for every multiprocessor), odd shares, a published width, and
  // inputs that leave warps without any; of Mamba-2 each d_state that the kernels know.
  for (const Size& size : {Size{32, 64, 16, 2}, Size{96, 224, 32, 2}, Size{768, 1536, 48, 2},
                           Size{1056, 2080, 176, 1}, Size{64, 128, 0, 2, 16, 64},
                           Size{96, 384, 0, 2, 48, 256}, Size{768, 1536, 0, 2, 64, 128}}) {
    SCOPED_TRACE(std::to_string(size.d_model) + ", d_state " + std::to_string(size.d_state));
    const Stack stack = lively_stack(size, dtype, device, size.d_inner != 224);
    const bool large = (size.d_model > 100 || size.d_state > 128) &&
                       (device.is_cpu() || dtype != DType::bf16);  // whose steps are the layers'
    for (const std::int64_t rows : large
                                       ? std::vector<std::int64_t>{1}
                                       : std::vector<std::int64_t>{1, 2, 3, 4, 5, 9, 17, 33, 64}) {
      SCOPED_TRACE(rows);
      expect_as_near(stack, rows, {}, size.d_model < 100 && rows < 10 ? 6 : 1);
    }
  }
}

#ifdef MAMBA_HAS_CUDA
#ifdef MAMBA_HAS_SM_90  // set by the build
constexpr bool built_for_sm_90 = true;
#else
constexpr bool built_for_sm_90 = false;
#endif

// So that the tests here do not pass for want of the kernel. It needs a device of 9.0 and code for
// it: code for 8.0 runs there too, but its kernels wait for nothing before them.
TEST_EACH(StackStep, TakesThePublishedShapes, testing::CudaDevice device) {
  const bool can = built_for_sm_90 && cuda::limits(device, "test").capability >= 90;
  const Stream stream(device);
  // As many rows as the chain of kernels is faster with than the layers one after the other.
  const std::vector<std::pair<int, int>> most_rows{{32, 64},   {96, 64},   {768, 64}, {1024, 64},
                                                   {1536, 42}, {2048, 32}, {2560, 25}};
  for (const auto& [d_model, most] : most_rows) {
    for (const int rows : {1, 2, 3, 4, 5, 8, most, most + 1}) {
      Mamba1Step step;
      step.layer_count = 64;
      step.rows = rows;
      step.d_model = d_model;
      step.d_inner = 2 * d_model;
      step.dt_rank = (d_model + 255) / 256 * 16;
      EXPECT_EQ(cuda::takes(step, stream), can && rows <= most)
          << d_model << ", " << rows << " rows";
    }
  }
}

TEST_EACH(StackStep, TakesThePublishedShapesOfMamba2, testing::CudaDevice device) {
  const bool can = built_for_sm_90 && cuda::limits(device, "test").capability >= 90;
  const Stream stream(device);
  for (const int d_model : {64, 768, 1024, 1536, 2048, 2560}) {
    for (const int rows : {1, 4, 8, 16, 64, 65}) {
      Mamba2Step step;
      step.layer_count = 64;
      step.rows = rows;
      step.d_model = d_model;
      step.d_inner = 2 * d_model;
      step.heads = d_model == 64 ? 8 : d_model / 32;
      step.d_state = 128;
      EXPECT_EQ(cuda::takes(step, stream), can && rows <= 64) << d_model << ", " << rows << " rows";
      step.d_state = 96;
      EXPECT_FALSE(cuda::takes(step, stream));
    }
  }
}

TEST_EACH(StackStepLimits, IsAsNearToTheTruthAsLayerByLayer, testing::LesserDevice lesser,
          testing::CudaDevice device) {
  const cuda::LimitedDevices limited(lesser.limits);
  const cuda::Limits& limits = lesser.limits;
  const bool may = limits.capability >= 90 && limits.shared_memory > 99 << 10;
  for (const Size& size : {Size{96, 224, 32, 2}, Size{768, 1536, 48, 2}}) {
    const Stack stack = lively_stack(size, DType::bf16, device);
    for (const std::int64_t rows : {1, 3, 9, 33}) {
      SCOPED_TRACE(std::to_string(size.d_model) + ", " + std::to_string(rows) + " rows");
      Mamba1Step sizes;
      sizes.layer_count = static_cast<int>(size.n_layer);
      sizes.rows = static_cast<int>(rows);
      sizes.d_model = static_cast<int>(size.d_model);
      sizes.d_inner = static_cast<int>(size.d_inner);
      sizes.dt_rank = static_cast<int>(size.dt_rank);
      if (!may || (rows <= 4 && !limits.cooperative)) {
        EXPECT_FALSE(cuda::takes(sizes, Stream(device)));
      }
      expect_as_near(stack, rows, {}, 1);
    }
  }
}
#endif

TEST_EACH(StackStep, GoesOnAsLongAsOneLikes, Device device,
          testing::OneOf<DType::bf16, DType::f32> dtype) {
  for (const Size& size : small_sizes) {
    SCOPED_TRACE(size.d_inner);
    const Stack stack = lively_stack(size, dtype, device);
    for (const std::int64_t rows : {4, 12}) {
      SCOPED_TRACE(rows);
      StackState together = lively_state(stack, rows, 9);
      StackState one = row_of(together, 1);
      StackState again = one.clone();
      Stream stream(device);
      for (std::uint64_t t = 0; t < 40; ++t) {
        const Tensor x = input(stack, rows, t);
        Tensor y(x.shape(), dtype, device), y_one({1, 1, 96}, dtype, device),
            y_again({1, 1, 96}, dtype, device);
        stack.forward(x, together, y, stream);
        stack.forward(x.view().rows(1, 1), one, y_one, stream);
        stack.forward(x.view().rows(1, 1), again, y_again, stream);
        stream.synchronize();
        ASSERT_EQ(bits(y_one), bits(y_again)) << t;
        const Distance apart(values(y.view().rows(1, 1)), values(y_one));
        ASSERT_LT(apart.root_mean_square(), 16 * testing::roundoff(dtype)) << t;
      }
    }
  }
}

TEST_EACH(StackStep, ResetsRowsThatBegin, Device device,
          testing::OneOf<DType::bf16, DType::f32> dtype) {
  for (const Size& size : small_sizes) {
    SCOPED_TRACE(size.d_inner);
    const Stack stack = lively_stack(size, dtype, device);
    expect_as_near(stack, 3, {0, 1, 0}, 6);
    std::vector<std::int32_t> many(20);
    for (const std::size_t row : {1U, 4U, 5U, 9U, 17U}) many[row] = 1;
    expect_as_near(stack, 10, {many.begin(), many.begin() + 10}, 2);
    expect_as_near(stack, 20, many, 1);
  }
}

TEST_EACH(StackStep, ReadsAndWritesTheRowsOfAMap, Device device,
          testing::OneOf<DType::bf16, DType::f32> dtype) {
  for (const Size& size : small_sizes) {
    SCOPED_TRACE(size.d_inner);
    const Stack stack = lively_stack(size, dtype, device);
    for (const std::int32_t rows : {5, 20, 40}) {
      SCOPED_TRACE(rows);
      const Tensor x = input(stack, rows);
      const StackState slots = lively_state(stack, rows + 2, 9);
      // On in place, a branch from 2 into 0, padding, fresh and kept, read and dropped.
      // The others on in place, from the last slot down.
      std::vector<std::int32_t> from{4, 2, -1, -1, 5}, to{4, 0, -1, 6, -1};
      for (std::int32_t n = 5; n < rows; ++n) {
        from.push_back(rows + 6 - n);
        to.push_back(rows + 6 - n);
      }
      const Tensor read = Tensor::from(from).to(device), write = Tensor::from(to).to(device);
      StackOptions options;
      options.rows = {read, write};
      StackState after = slots.clone();
      Tensor y(x.shape(), dtype, device);
      Stream stream(device);
      stack.forward(x, after, y, stream, options);
      stream.synchronize();

      for (const std::int64_t n : {0, 1, 3, 4, rows - rows / 4, rows - 1}) {
        SCOPED_TRACE(n);
        const auto row = static_cast<std::size_t>(n);
        StackState alone = from[row] < 0 ? stack.make_state(1) : row_of(slots, from[row]);
        Tensor y_alone({1, 1, size.d_model}, dtype, device);
        stack.forward(x.view().rows(n, 1), alone, y_alone, stream);
        stream.synchronize();
        const double bound = 16 * testing::roundoff(dtype);
        const Distance apart(values(y.view().rows(n, 1)), values(y_alone));
        EXPECT_LT(apart.root_mean_square(), bound);
        if (to[row] < 0) continue;
        for (std::size_t l = 0; l < stack.size(); ++l) {
          const auto compare = [&](const Tensor& a, const Tensor& b) {
            const Distance far(values(a.view().rows(to[row], 1)), values(b));
            EXPECT_LT(far.root_mean_square(), bound);
          };
          compare(after.layers[l].conv, alone.layers[l].conv);
          compare(after.layers[l].ssm, alone.layers[l].ssm);
        }
      }
      // Padding: what the final norm makes of x alone.
      AddRmsNorm norm;
      Tensor normed({1, 1, size.d_model}, dtype, device);
      norm.x = x.view().rows(2, 1);
      norm.weight = stack.norm(stack.size());
      norm.y = normed;
      run(norm, stream);
      stream.synchronize();
      EXPECT_EQ(bits(y.view().rows(2, 1)), bits(normed));
      for (const std::int64_t untouched : {1, 2, 3, 5}) {
        for (std::size_t l = 0; l < stack.size(); ++l) {
          EXPECT_EQ(bits(after.layers[l].conv.view().rows(untouched, 1)),
                    bits(slots.layers[l].conv.view().rows(untouched, 1)));
          EXPECT_EQ(bits(after.layers[l].ssm.view().rows(untouched, 1)),
                    bits(slots.layers[l].ssm.view().rows(untouched, 1)));
        }
      }
    }
  }
}

TEST_EACH(StackStep, ARowOutsideTheStateIsSaidAndNothingIsWritten, testing::CudaDevice device) {
  for (const Size& size : small_sizes) {
    SCOPED_TRACE(size.d_inner);
    const Stack stack = lively_stack(size, DType::bf16, device);
    for (const std::int64_t rows : {2, 12, 20, 40}) {
      SCOPED_TRACE(rows);
      const Tensor x = input(stack, rows);
      StackState state = lively_state(stack, 3, 9);
      const StackState before = state.clone();
      std::vector<std::int32_t> from(static_cast<std::size_t>(rows), -1), to = from;
      from[0] = 1;
      from[1] = to[1] = 3;
      const Tensor read = Tensor::from(from).to(device), write = Tensor::from(to).to(device);
      StackOptions options;
      options.rows = {read, write};
      Tensor y(x.shape(), DType::bf16, device);
      Stream stream(device);
      stack.forward(x, state, y, stream, options);
      testing::expect_error<ArgumentError>(
          "rows: read or write: expected rows of the state, got one outside of it",
          [&] { stream.synchronize(); });
      for (const double value : values(y.view().rows(0, 1))) EXPECT_TRUE(std::isfinite(value));
      for (const double value : values(y.view().rows(1, 1))) EXPECT_TRUE(std::isnan(value));
      for (std::size_t l = 0; l < stack.size(); ++l) {
        EXPECT_EQ(bits(state.layers[l].ssm), bits(before.layers[l].ssm));
        EXPECT_EQ(bits(state.layers[l].conv), bits(before.layers[l].conv));
      }
    }
  }
}

TEST_EACH(StackStep, ReplaysAndStreamsSideBySideHaveTheSameBits, testing::CudaDevice device) {
  for (const Size& size : {Size{768, 1536, 48, 4}, Size{768, 1536, 0, 4, 64, 128}}) {
    SCOPED_TRACE(size.d_state);
    const Stack stack = lively_stack(size, DType::bf16, device);
    for (const std::int64_t rows : {2, 12, 40}) {
      SCOPED_TRACE(rows);
      const StackState begin = lively_state(stack, rows, 9);
      const Tensor x = input(stack, rows);
      const auto run_steps = [&](Stream& stream, StackState& state, Tensor& y, bool replayed) {
        stack.forward(x, state, y, stream);
        if (!replayed) {
          for (int t = 0; t < 20; ++t) stack.forward(x, state, y, stream);
          return;
        }
        stream.synchronize();
        const StackState now = state.clone();
        const Graph graph =
            Graph::record(stream, [&](Stream& s) { stack.forward(x, state, y, s); });
        for (int t = 0; t < 20; ++t) graph.replay();
        stream.synchronize();
      };
      Stream a(device), b(device), c(device);
      StackState states[3] = {begin.clone(), begin.clone(), begin.clone()};
      Tensor ys[3];
      for (Tensor& y : ys) y = Tensor(x.shape(), DType::bf16, device);
      run_steps(a, states[0], ys[0], false);
      run_steps(b, states[1], ys[1], false);
      run_steps(c, states[2], ys[2], true);
      a.synchronize();
      b.synchronize();
      for (int i = 1; i < 3; ++i) {
        EXPECT_EQ(bits(ys[i]), bits(ys[0]));
        for (std::size_t l = 0; l < stack.size(); ++l) {
          EXPECT_EQ(bits(states[i].layers[l].ssm), bits(states[0].layers[l].ssm));
          EXPECT_EQ(bits(states[i].layers[l].conv), bits(states[0].layers[l].conv));
        }
      }
    }
  }
}

}  // namespace
}  // namespace mamba
