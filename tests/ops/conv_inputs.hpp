// Random operands of CausalConv as a layer would hold them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "testing.hpp"

namespace mamba::testing {

struct ConvCase {
  std::int64_t batch = 2, time = 9, channels = 17, width = 4;
  DType dtype = DType::f32;
  bool bias = true, silu = true, initial = true, reset = false;
  double scale = 1;

  std::string name() const {
    return Shape{batch, time, channels, width}.to_string() + " " + name_of(dtype) +
           (bias ? " bias" : "") + (silu ? " silu" : "") + (initial ? " initial" : "") +
           (reset ? " reset" : "");
  }
};

// x is columns of a projection, not aligned.
struct ConvInputs {
  ConvCase shape;
  Tensor xz, weight, bias, initial, reset;

  explicit ConvInputs(const ConvCase& c, std::uint64_t seed = 1) : shape(c) {
    Random random(seed);
    xz = random.normal_tensor({c.batch, c.time, 2 * c.channels + 3}, c.dtype, c.scale);
    weight = random.normal_tensor({c.channels, c.width + 1});
    if (c.bias) bias = random.normal_tensor({c.channels});
    if (c.initial) {
      initial = random.normal_tensor({c.batch, c.channels, c.width - 1}, c.dtype, c.scale);
    }
    if (c.reset) {
      std::vector<std::int32_t> flags(static_cast<std::size_t>(c.batch * c.time));
      for (std::int32_t& flag : flags) flag = random.uniform(0, 1) < 0.2 ? -7 : 0;
      reset = Tensor::from(flags, {c.batch, c.time});
    }
  }

  ConvInputs to(Device device) const {
    ConvInputs moved(ConvCase{0, 0, 0, 1});
    moved.shape = shape;
    moved.xz = xz.to(device);
    moved.weight = weight.to(device);
    moved.bias = bias.to(device);
    moved.initial = initial.to(device);
    moved.reset = reset.to(device);
    return moved;
  }

  CausalConv op() const {
    CausalConv conv;
    conv.x = xz.view().columns(1, shape.channels);
    conv.weight = weight.view().columns(0, shape.width);
    conv.bias = bias;
    conv.initial_state = initial;
    conv.reset = reset;
    conv.silu = shape.silu;
    return conv;
  }
  Shape y_shape() const { return {shape.batch, shape.time, shape.channels}; }
  Shape state_shape() const { return {shape.batch, shape.channels, shape.width - 1}; }
  Shape step_shape() const { return {shape.batch, shape.time, shape.channels, shape.width - 1}; }
};

}  // namespace mamba::testing
