// Random operands of SelectiveScanGrad, its outputs, and what they must be.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <mamba/detail/scan_chunk.hpp>

#include "ops/scan_grad_reference.hpp"
#include "ops/scan_inputs.hpp"
#include "testing.hpp"

namespace mamba::testing {

// The forward operands and the gradients that come in.
struct GradInputs {
  ScanInputs scan;
  Tensor dy, dfinal;  // dy with a column to spare, unless aligned

  explicit GradInputs(const ScanCase& c, std::uint64_t seed = 1) : scan(c, seed) {
    Random random(seed + 1000);
    const std::int64_t spare = c.aligned ? 0 : 1;
    dy = random.tensor({c.batch, c.time, c.channels + spare}, c.dtype,
                       [&] { return random.normal(); });
    if (c.initial) dfinal = random.normal_tensor(scan.state_shape());
  }
  GradInputs to(Device device) const {
    GradInputs moved(ScanCase{0, 0, 0, 1});
    moved.scan = scan.to(device);
    moved.dy = dy.to(device);
    moved.dfinal = dfinal.to(device);
    return moved;
  }
  const ScanCase& shape() const { return scan.shape; }
  ConstTensorView dy_view() const {
    return dy.view().columns(shape().aligned ? 0 : 1, shape().channels);
  }
};

// Every output of one call, guarded.
struct Gradients {
  Guarded dx, ddt, dz, y, dB, dC, dA, dD, ddt_bias, dinitial;  // dA: or dA_log

  Gradients(const ScanCase& c, Device device)
      : dx({c.batch, c.time, c.channels}, c.dtype, device, c.aligned ? 8 : 3),
        ddt({c.batch, c.time, c.channels}, c.dtype, device, c.aligned ? 8 : 1),
        dz({c.batch, c.time, c.channels}, c.dtype, device, c.aligned ? 8 : 2),
        y({c.batch, c.time, c.channels}, c.dtype, device, c.aligned ? 8 : 1),
        dB({c.batch, c.time, c.d_state}, c.dtype, device, 5),
        dC({c.batch, c.time, c.d_state}, c.dtype, device, 5),
        dA({c.channels, c.d_state}, DType::f32, device),
        dD({c.channels}, DType::f32, device),
        ddt_bias({c.channels}, DType::f32, device),
        dinitial({c.batch, c.channels, c.d_state}, DType::f32, device) {}

  std::vector<std::pair<const char*, const Guarded*>> all() const {
    return {{"dx", &dx}, {"ddt", &ddt},
            {"dz", &dz}, {"y", &y},
            {"dB", &dB}, {"dC", &dC},
            {"dD", &dD}, {"ddt_bias", &ddt_bias},
            {"dA", &dA}, {"dinitial", &dinitial}};
  }
  void expect_untouched(const std::string& what) const {
    for (const auto& [name, output] : all()) output->expect_untouched(what + ": " + name);
  }
};

inline SelectiveScanGrad grad_op(const SelectiveScan& scan, const Gradients& out) {
  SelectiveScanGrad op;
  op.x = scan.x;
  op.dt = scan.dt;
  op.A_log = scan.A_log;
  op.A = scan.A;
  op.B = scan.B;
  op.C = scan.C;
  op.D = scan.D;
  op.z = scan.z;
  op.dt_bias = scan.dt_bias;
  op.reset = scan.reset;
  op.softplus = scan.softplus;
  op.chunk_states = scan.chunk_states;
  op.chunk_steps = scan.chunk_steps;
  op.dx = out.dx.view();
  op.ddt = out.ddt.view();
  if (scan.z) op.dz = out.dz.view();
  op.dB = out.dB.view();
  op.dC = out.dC.view();
  (scan.A ? op.dA : op.dA_log) = out.dA.view();
  if (scan.D) op.dD = out.dD.view();
  if (scan.dt_bias) op.ddt_bias = out.ddt_bias.view();
  op.dinitial_state = out.dinitial.view();
  op.y = out.y.view();
  return op;
}

// The forward run, which leaves its chunk states, then the gradient by `run_grad`.
template <class Run>
void run_both(const GradInputs& inputs, const Gradients& out, Stream& stream,
              std::int64_t chunk_steps, const Run& run_grad) {
  SelectiveScan scan = inputs.scan.op();
  scan.chunk_steps = chunk_steps > 0 ? chunk_steps : detail::scan_chunk_steps(scan, stream);
  const ScanCase& c = inputs.shape();
  const std::int64_t chunks = (c.time + scan.chunk_steps - 1) / scan.chunk_steps;
  Tensor states({c.batch, chunks, c.channels, c.d_state}, DType::f32, stream.device());
  Tensor y(inputs.scan.y_shape(), c.dtype, stream.device());
  scan.chunk_states = states;
  scan.y = y;
  run(scan, stream);
  SelectiveScanGrad op = grad_op(scan, out);
  op.dy = inputs.dy_view();
  op.dfinal_state = inputs.dfinal;
  run_grad(op, stream);
  stream.synchronize();
}
inline void run_both(const GradInputs& inputs, const Gradients& out, Stream& stream,
                     std::int64_t chunk_steps = 0) {
  run_both(inputs, out, stream, chunk_steps,
           [](const SelectiveScanGrad& op, Stream& on) { run(op, on); });
}

inline ScanGradResult reference(const GradInputs& inputs) {
  const ScanReference scan(inputs.scan.op());
  const ScanLoss loss{values(inputs.dy_view()), optional_values(inputs.dfinal)};
  return ScanGradReference(scan, loss, static_cast<std::size_t>(inputs.shape().batch)).result();
}

inline void expect_gradients(const Gradients& out, const ScanGradResult& expected,
                             const ScanCase& c, const std::string& what) {
  expect_within(out.dx.view(), expected.dx, what + ": dx");
  expect_within(out.ddt.view(), expected.ddt, what + ": ddt");
  if (c.z) expect_within(out.dz.view(), expected.dz, what + ": dz");
  expect_within(out.y.view(), expected.y, what + ": y");
  expect_within(out.dB.view(), expected.dB, what + ": dB");
  expect_within(out.dC.view(), expected.dC, what + ": dC");
  const bool log = c.decays == ScanDecays::log;
  expect_within(out.dA.view(), log ? expected.dA_log : expected.dA,
                what + (log ? ": dA_log" : ": dA"));
  if (c.D) expect_within(out.dD.view(), expected.dD, what + ": dD");
  if (c.dt_bias) expect_within(out.ddt_bias.view(), expected.ddt_bias, what + ": ddt_bias");
  expect_within(out.dinitial.view(), expected.dinitial, what + ": dinitial");
  out.expect_untouched(what);
}

}  // namespace mamba::testing
