// Random operands of Ssd as a layer would hold them, and the ways in which devices compute it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "each.hpp"
#include "host/ops/scan/ssd.hpp"
#include "ops/scan_inputs.hpp"
#include "ops/ssd_reference.hpp"
#include "testing.hpp"

namespace mamba::testing {

// A device and what it is made to do: each plan of the CPU, and what CUDA chooses.
struct SsdWay {
  Device device;
  host::SsdPlan plan = host::SsdPlan::steps;

  bool is_steps() const { return device.is_cpu() && plan == host::SsdPlan::steps; }
  bool is_chunks() const { return device.is_cpu() && plan == host::SsdPlan::chunks; }
  Stream& stream() const { return default_stream(device); }

  // The plan that would be chosen is run as users run it, with its checks.
  void run(const Ssd& op, Stream& on) const {
    if (device.is_cuda() || plan == host::plan(op)) return mamba::run(op, on);
    host::run(op, on, plan);
  }
  void run(const Ssd& op) const { run(op, stream()); }
  bool can_run(const Ssd& op) const { return device.is_cuda() || host::can_run(op, plan); }

  // How it rounds. CUDA's plan is not known here, and one of them has 16-bit factors.
  SsdRounding rounding(DType dtype) const {
    SsdRounding rounds;
    if (!is_steps()) rounds.chunk = host::ssd_chunk;
    if (device.is_cuda() && dtype != DType::f32) {
      rounds.y_unit = rounds.state_unit = roundoff(dtype);
    }
    return rounds;
  }
};

template <>
struct Every<SsdWay> {
  static std::vector<SsdWay> all() {
    std::vector<SsdWay> list;
    for (const Device device : devices()) {
      list.push_back({device, host::SsdPlan::steps});
      if (device.is_cpu()) list.push_back({device, host::SsdPlan::chunks});
    }
    return list;
  }
  static std::string name(const SsdWay& way) {
    const std::string plan = way.is_steps() ? "_steps" : way.is_chunks() ? "_chunks" : "";
    return Every<Device>::name(way.device) + plan;
  }
};

struct SsdCase {
  std::int64_t batch = 2, time = 9, heads = 3, head_dim = 8, groups = 1, d_state = 16;
  DType dtype = DType::f32;
  bool D = true, dt_bias = true, initial = true, reset = false, softplus = true;
  float dt_low = 0, dt_high = std::numeric_limits<float>::infinity();
  bool aligned = false;  // rows begin at multiples of 16 bytes, where the sizes allow

  std::int64_t channels() const { return heads * head_dim; }
  std::string name() const {
    return Shape{batch, time, heads, head_dim}.to_string() + ", groups " + std::to_string(groups) +
           ", d_state " + std::to_string(d_state) + " " + name_of(dtype) + (D ? " D" : "") +
           (dt_bias ? " bias" : "") + (initial ? " initial" : "") + (reset ? " reset" : "") +
           (softplus ? " softplus" : "") + (dt_low > 0 ? " limits" : "") +
           (aligned ? " aligned" : "");
  }
};

// x, B and C are columns of one convolved tensor, dt those of a projection.
struct SsdInputs {
  SsdCase shape;
  Tensor xBC, dt, A_log, D, dt_bias, initial, reset;

  explicit SsdInputs(const SsdCase& c, std::uint64_t seed = 1) : shape(c) {
    Random random(seed);
    const std::int64_t odd = c.aligned ? 0 : 1;
    xBC = random.normal_tensor({c.batch, c.time, c.channels() + 2 * c.groups * c.d_state + 3 * odd},
                               c.dtype);
    dt = random.normal_tensor({c.batch, c.time, c.heads + 5 * odd}, c.dtype);
    A_log = random.tensor({c.heads}, DType::f32, [&] { return std::log(random.uniform(0.5, 16)); });
    if (c.D) D = random.normal_tensor({c.heads});
    if (c.dt_bias) dt_bias = random.uniform_tensor({c.heads}, -7, 1);
    if (c.initial) initial = random.normal_tensor({c.batch, c.channels(), c.d_state});
    if (c.reset) reset = random_resets(random);
  }

  // About one in twenty, so that chunks of many lengths are there.
  Tensor random_resets(Random& random) const {
    std::vector<std::int32_t> flags(static_cast<std::size_t>(shape.batch * shape.time));
    for (std::int32_t& flag : flags) flag = random.uniform(0, 1) < 0.05 ? -7 : 0;
    return Tensor::from(flags, {shape.batch, shape.time});
  }

  SsdInputs to(Device device) const {
    SsdInputs moved(SsdCase{0, 0, 1, 1, 1, 1});
    moved.shape = shape;
    moved.xBC = xBC.to(device);
    moved.dt = dt.to(device);
    moved.A_log = A_log.to(device);
    moved.D = D.to(device);
    moved.dt_bias = dt_bias.to(device);
    moved.initial = initial.to(device);
    moved.reset = reset.to(device);
    return moved;
  }

  Ssd op() const {
    const SsdCase& c = shape;
    const std::int64_t odd = c.aligned ? 0 : 1, width = c.groups * c.d_state;
    Ssd ssd;
    ssd.x = xBC.view().columns(odd, c.channels());
    ssd.B = xBC.view().columns(odd + c.channels(), width);
    ssd.C = xBC.view().columns(2 * odd + c.channels() + width, width);
    ssd.dt = dt.view().columns(2 * odd, c.heads);
    ssd.A_log = A_log;
    ssd.D = D;
    ssd.dt_bias = dt_bias;
    ssd.initial_state = initial;
    ssd.reset = reset;
    ssd.groups = c.groups;
    ssd.softplus = c.softplus;
    ssd.dt_low = c.dt_low;
    ssd.dt_high = c.dt_high;
    return ssd;
  }
  Shape y_shape() const { return {shape.batch, shape.time, shape.channels()}; }
  Shape state_shape() const { return {shape.batch, shape.channels(), shape.d_state}; }
  Shape step_shape() const { return {shape.batch, shape.time, shape.channels(), shape.d_state}; }
};

// Steps first .. first + count of everything that has steps but the outputs.
inline Ssd steps_of(const Ssd& whole, std::int64_t first, std::int64_t count) {
  Ssd piece = whole;
  for (ConstTensorView* view : {&piece.x, &piece.dt, &piece.B, &piece.C}) {
    *view = view->steps(first, count);
  }
  if (whole.reset) piece.reset = whole.reset.columns(first, count);
  return piece;
}
// Batch rows b .. b + count of everything that has batch rows but states and outputs.
inline Ssd rows_of(const Ssd& whole, std::int64_t b, std::int64_t count) {
  Ssd piece = whole;
  for (ConstTensorView* view : {&piece.x, &piece.dt, &piece.B, &piece.C, &piece.reset}) {
    if (*view) *view = view->rows(b, count);
  }
  return piece;
}

// The outputs of one call, fresh.
struct SsdOutputs {
  Tensor y, final_state;
};

inline SsdOutputs run_ssd(const SsdWay& way, Ssd op, Stream& stream) {
  SsdOutputs out{
      Tensor(op.x.shape(), op.x.dtype(), way.device),
      Tensor({op.x.dim(0), op.x.dim(2), op.B.dim(2) / op.groups}, DType::f32, way.device)};
  op.y = out.y;
  op.final_state = out.final_state;
  way.run(op, stream);
  stream.synchronize();
  return out;
}
inline SsdOutputs run_ssd(const SsdWay& way, const Ssd& op) {
  return run_ssd(way, op, way.stream());
}

inline void expect_same(const SsdOutputs& a, const SsdOutputs& b, const std::string& what) {
  EXPECT_EQ(bits(a.y), bits(b.y)) << what << ": y";
  EXPECT_EQ(bits(a.final_state), bits(b.final_state)) << what << ": final state";
}

}  // namespace mamba::testing
