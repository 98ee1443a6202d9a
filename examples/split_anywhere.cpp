// The promise of an explicit state: however a sequence is cut, branched or packed, the outputs are
// the same. This program checks it on one layer and exits with 1 where it does not hold.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <mamba/mamba.hpp>

using mamba::ConstTensorView;
using mamba::MambaState;
using mamba::Tensor;
constexpr int time_steps = 100;
constexpr int d_model = 48;

// The largest difference, relative to the largest value. Matrix products of another number of rows
// may round differently; everything else gives the same bits.
bool same(const char* what, ConstTensorView expected, ConstTensorView got) {
  double difference = 0, largest = 0;
  for (std::int64_t i = 0; i < expected.count(); ++i) {
    const double value = expected.data<float>()[i];
    const double apart = std::abs(value - got.data<float>()[i]);
    if (apart > difference || std::isnan(apart)) difference = apart;  // a NaN stays
    largest = std::max(largest, std::abs(value));
  }
  const bool good = difference <= 1e-5 * largest;
  std::printf("%-40s %.1e %s\n", what, difference / largest, good ? "ok" : "TOO MUCH");
  return good;
}

Tensor sequence(int seed) {
  std::vector<float> values(time_steps * d_model);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = std::sin(static_cast<float>(seed) + 0.37f * static_cast<float>(i * i % 1009));
  }
  return Tensor::from(values, {1, time_steps, d_model});
}

// `x` in pieces of `piece` steps, one call each, the state handed from call to call.
Tensor in_pieces(const mamba::Layer& layer, ConstTensorView x, int piece) {
  MambaState state = layer.make_state(1);
  Tensor y(x.shape(), x.dtype());
  mamba::Stream& stream = mamba::default_stream();
  for (int t = 0; t < time_steps; t += piece) {
    const int count = std::min(piece, time_steps - t);
    layer.forward(x.steps(t, count), state, y.view().steps(t, count), stream);
  }
  return y;
}

// One past, two futures, as one batch of two; each must be what it is alone.
bool branched(const mamba::Layer& layer, const Tensor& past, const Tensor& left,
              const Tensor& right) {
  MambaState trunk = layer.make_state(1);
  layer.forward(past, trunk);
  MambaState both = trunk.repeat(2);
  Tensor futures({2, time_steps, d_model}, mamba::DType::f32);
  mamba::Stream& stream = mamba::default_stream();
  mamba::copy(left, futures.view().rows(0, 1), stream);
  mamba::copy(right, futures.view().rows(1, 1), stream);
  layer.forward(futures, both);

  // gather() takes a branch out of the batch; both go on with the same input.
  MambaState branch = both.gather({1});
  const Tensor y = layer.forward(past, branch);
  layer.forward(right, trunk);
  return same("branched in two, second branch", layer.forward(past, trunk), y);
}

// A reset in the middle: what comes after knows nothing of what came before.
bool reset_in_the_middle(const mamba::Layer& layer, const Tensor& x) {
  const int middle = 41;
  std::vector<std::int32_t> flags(time_steps);
  flags[middle] = 1;
  const Tensor reset = Tensor::from(flags, {1, time_steps});
  mamba::LayerOptions options;
  options.reset = reset;
  MambaState state = layer.make_state(1);
  Tensor y(x.shape(), x.dtype());
  layer.forward(x, state, y, mamba::default_stream(), options);
  const int rest = time_steps - middle;
  const Tensor alone = layer.forward(x.view().steps(middle, rest));
  return same("reset in the middle, what follows", alone, y.view().steps(middle, rest));
}

int main() {
  mamba::LayerConfig config;
  config.d_model = d_model;
  const mamba::Layer layer = mamba::Layer::random(config, /*seed=*/7);
  const Tensor x = sequence(1);
  const Tensor whole = layer.forward(x);

  bool good = same("in pieces of 7", whole, in_pieces(layer, x, 7));
  good &= same("in pieces of 64", whole, in_pieces(layer, x, 64));
  good &= same("step by step", whole, in_pieces(layer, x, 1));
  good &= branched(layer, x, sequence(2), sequence(3));
  good &= reset_in_the_middle(layer, x);
  return good ? 0 : 1;
}
