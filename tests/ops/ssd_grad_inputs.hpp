// Random operands of SsdGrad, its outputs, and what they must be.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <mamba/detail/scan_chunk.hpp>

#include "ops/ssd_grad_reference.hpp"
#include "ops/ssd_inputs.hpp"
#include "testing.hpp"

namespace mamba::testing {

// The forward operands and the gradients that come in.
struct SsdGradInputs {
  SsdInputs ssd;
  Tensor dy, dfinal;  // dy with a column to spare, unless aligned

  explicit SsdGradInputs(const SsdCase& c, std::uint64_t seed = 1) : ssd(c, seed) {
    Random random(seed + 1000);
    dy = random.normal_tensor({c.batch, c.time, c.channels() + (c.aligned ? 0 : 1)}, c.dtype);
    if (c.initial) dfinal = random.normal_tensor(ssd.state_shape());
  }
  SsdGradInputs to(Device device) const {
    SsdGradInputs moved(SsdCase{0, 0, 1, 1, 1, 1});
    moved.ssd = ssd.to(device);
    moved.dy = dy.to(device);
    moved.dfinal = dfinal.to(device);
    return moved;
  }
  const SsdCase& shape() const { return ssd.shape; }
  ConstTensorView dy_view() const {
    return dy.view().columns(shape().aligned ? 0 : 1, shape().channels());
  }
};

// Every output of one call, guarded. dx, dB and dC are columns of one tensor, as in a layer.
struct SsdGradients {
  Guarded dx, ddt, dB, dC, dA_log, dD, ddt_bias, dinitial;

  SsdGradients(const SsdCase& c, Device device)
      : dx({c.batch, c.time, c.channels()}, c.dtype, device, c.aligned ? 8 : 3),
        ddt({c.batch, c.time, c.heads}, c.dtype, device, c.aligned ? 8 : 1),
        dB({c.batch, c.time, c.groups * c.d_state}, c.dtype, device, c.aligned ? 8 : 5),
        dC({c.batch, c.time, c.groups * c.d_state}, c.dtype, device, c.aligned ? 8 : 5),
        dA_log({c.heads}, DType::f32, device),
        dD({c.heads}, DType::f32, device),
        ddt_bias({c.heads}, DType::f32, device),
        dinitial({c.batch, c.channels(), c.d_state}, DType::f32, device) {}

  std::vector<std::pair<const char*, const Guarded*>> all() const {
    return {{"dx", &dx},
            {"ddt", &ddt},
            {"dB", &dB},
            {"dC", &dC},
            {"dA_log", &dA_log},
            {"dD", &dD},
            {"ddt_bias", &ddt_bias},
            {"dinitial", &dinitial}};
  }
  void expect_untouched(const std::string& what) const {
    for (const auto& [name, output] : all()) output->expect_untouched(what + ": " + name);
  }
};

inline SsdGrad grad_op(const Ssd& ssd, const SsdGradients& out) {
  SsdGrad op;
  op.x = ssd.x;
  op.dt = ssd.dt;
  op.A_log = ssd.A_log;
  op.B = ssd.B;
  op.C = ssd.C;
  op.D = ssd.D;
  op.dt_bias = ssd.dt_bias;
  op.reset = ssd.reset;
  op.groups = ssd.groups;
  op.softplus = ssd.softplus;
  op.dt_low = ssd.dt_low;
  op.dt_high = ssd.dt_high;
  op.chunk_states = ssd.chunk_states;
  op.chunk_steps = ssd.chunk_steps;
  op.dx = out.dx.view();
  op.ddt = out.ddt.view();
  op.dB = out.dB.view();
  op.dC = out.dC.view();
  op.dA_log = out.dA_log.view();
  if (ssd.D) op.dD = out.dD.view();
  if (ssd.dt_bias) op.ddt_bias = out.ddt_bias.view();
  op.dinitial_state = out.dinitial.view();
  return op;
}

// The forward run, which leaves its chunk states, then the gradient by `run_grad`.
template <class Run>
void run_both(const SsdGradInputs& inputs, const SsdGradients& out, Stream& stream,
              std::int64_t chunk_steps, const Run& run_grad) {
  Ssd ssd = inputs.ssd.op();
  ssd.chunk_steps = chunk_steps > 0 ? chunk_steps : detail::scan_chunk_steps(ssd, stream);
  const SsdCase& c = inputs.shape();
  const std::int64_t chunks = (c.time + ssd.chunk_steps - 1) / ssd.chunk_steps;
  Tensor states({c.batch, chunks, c.channels(), c.d_state}, DType::f32, stream.device());
  Tensor y(inputs.ssd.y_shape(), c.dtype, stream.device());
  ssd.chunk_states = states;
  ssd.y = y;
  run(ssd, stream);
  SsdGrad op = grad_op(ssd, out);
  op.dy = inputs.dy_view();
  op.dfinal_state = inputs.dfinal;
  run_grad(op, stream);
  stream.synchronize();
}
inline void run_both(const SsdGradInputs& inputs, const SsdGradients& out, Stream& stream,
                     std::int64_t chunk_steps = 0) {
  run_both(inputs, out, stream, chunk_steps, [](const SsdGrad& op, Stream& on) { run(op, on); });
}

// How a device's gradient rounds. Which plan CUDA takes is not known here: in bf16 it may be the
// one on tensor cores, whose factors are bf16, two of them in dlog_a.
inline SsdRounding grad_rounding(Device device, DType dtype) {
  SsdRounding rounds;
  rounds.chunk = host::ssd_chunk;
  if (device.is_cuda() && dtype == DType::bf16) {
    rounds.state_unit = roundoff(dtype);
    rounds.y_unit = 2 * roundoff(dtype);
  }
  return rounds;
}

inline SsdGradResult reference(const SsdGradInputs& inputs, Device device) {
  const SsdReference ssd(inputs.ssd.op(), grad_rounding(device, inputs.shape().dtype));
  const SsdLoss loss{values(inputs.dy_view()), optional_values(inputs.dfinal)};
  return SsdGradReference(ssd, loss).result();
}

inline void expect_gradients(const SsdGradients& out, const SsdGradResult& expected,
                             const SsdCase& c, const std::string& what) {
  expect_within(out.dx.view(), expected.dx, what + ": dx");
  expect_within(out.ddt.view(), expected.ddt, what + ": ddt");
  expect_within(out.dB.view(), expected.dB, what + ": dB");
  expect_within(out.dC.view(), expected.dC, what + ": dC");
  expect_within(out.dA_log.view(), expected.dA_log, what + ": dA_log");
  if (c.D) expect_within(out.dD.view(), expected.dD, what + ": dD");
  if (c.dt_bias) expect_within(out.ddt_bias.view(), expected.ddt_bias, what + ": ddt_bias");
  expect_within(out.dinitial.view(), expected.dinitial, what + ": dinitial");
  out.expect_untouched(what);
}

}  // namespace mamba::testing
