// SelectiveScan and its gradient with A in the place of A_log and without softplus: what only these
// can do. What holds for every form is in selective_scan_test.cpp and selective_scan_grad_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "each.hpp"
#include "ops/scan_grad_inputs.hpp"
#include "ops/scan_inputs.hpp"

namespace mamba::testing {
namespace {

Tensor filled(const Shape& shape, float value) {
  return Tensor::from(std::vector<float>(static_cast<std::size_t>(shape.count()), value), shape);
}

// One state of every channel, without D and z: y is C h.
struct Growth {
  std::int64_t batch, time, channels = 24;
  Tensor x, dt, A, B, C, initial;

  Growth(std::int64_t rows, std::int64_t steps, float delta, float given_A)
      : batch(rows),
        time(steps),
        x(filled({batch, time, channels}, 0)),
        dt(filled({batch, time, channels}, delta)),
        A(filled({channels, 1}, given_A)),
        B(filled({batch, time, 1}, 1)),
        C(filled({batch, time, 1}, 2)),
        initial(filled({batch, channels, 1}, 3)) {}

  std::vector<double> run_on(Device device) const {
    std::vector<Tensor> there;
    for (const Tensor* tensor : {&x, &dt, &A, &B, &C, &initial})
      there.push_back(tensor->to(device));
    Tensor y({batch, time, channels}, DType::f32, device);
    SelectiveScan op;
    op.x = there[0];
    op.dt = there[1];
    op.A = there[2];
    op.B = there[3];
    op.C = there[4];
    op.initial_state = there[5];
    op.softplus = false;
    op.y = y;
    run(op, default_stream(device));
    return values(y);
  }
};

TEST_EACH(SelectiveScanForms, WhatGrowsBeyondF32IsInfinite, Device device) {
  for (const std::int64_t time : {1, 2, 40, 300}) {
    for (const float sign : {1.0f, -1.0f}) {  // of both factors
      for (const double y : Growth(1, time, 200 * sign, sign).run_on(device)) {
        ASSERT_EQ(y, std::numeric_limits<double>::infinity()) << "time " << time;
      }
      const double kept = std::exp(80.0) * 6;  // 3.3e35
      for (const double y : Growth(1, 1, 80 * sign, sign).run_on(device)) {
        ASSERT_NEAR(y, kept, kept * 1e-4);
      }
      for (const double y : Growth(1, time, -200 * sign, sign).run_on(device)) ASSERT_EQ(y, 0);
    }
  }
}

// Twelve decays are e^96, which f32 does not hold, although nothing is there that grows.
TEST_EACH(SelectiveScanForms, AStateOfZeroStaysZero, Device device) {
  for (const std::int64_t time : {20, 150, 700}) {
    Growth growth(1, time, 4, 2);
    growth.initial = filled(growth.initial.shape(), 0);
    const std::int64_t channels = growth.channels;
    for (std::int64_t i = (time - 1) * channels; i < time * channels; ++i) {
      growth.x.data<float>()[i] = 1;
    }
    const std::vector<double> y = growth.run_on(device);
    for (std::int64_t i = 0; i < time * channels; ++i) {
      ASSERT_EQ(y[static_cast<std::size_t>(i)], i < (time - 1) * channels ? 0 : 8)
          << "time " << time << " at " << i;
    }
  }
}

// A delta of zero keeps the state, also where A times log2(e) is beyond f32.
TEST_EACH(SelectiveScanForms, ADeltaOfZeroKeepsTheState, Device device) {
  for (const float A : {0.0f, 3e38f, -3e38f, std::numeric_limits<float>::infinity()}) {
    for (const std::int64_t time : {1, 40, 300}) {
      for (const double y : Growth(2, time, 0, A).run_on(device)) ASSERT_EQ(y, 6) << A;
    }
  }
}

// An A of -exp(A_log) is that A_log, but for how the exponential is rounded.
TEST_EACH(SelectiveScanForms, AIsMinusTheExponentialOfALog, Device device, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.time = 40;
  ScanInputs host(c);
  const SequenceResult expected = scan_reference(host.op());
  Tensor A(host.A_log.shape(), DType::f32);
  for (std::int64_t i = 0; i < A.count(); ++i) {
    A.data<float>()[i] = -std::exp(host.A_log.data<float>()[i]);
  }
  host.A = std::move(A);
  host.A_log = Tensor();
  const ScanInputs inputs = host.to(device);
  Tensor y(inputs.y_shape(), dtype, device);
  SelectiveScan op = inputs.op();
  op.y = y;
  run(op, default_stream(device));
  expect_within(y, expected.y, c.name());
}

// ---- errors ------------------------------------------------------------------------------------

TEST(SelectiveScanForms, ErrorsNameTheOperand) {
  ScanCase c;
  c.decays = ScanDecays::mixed;
  const ScanInputs inputs(c);
  const Tensor log = filled({17, 16}, 0), large = filled({17, 257}, 0), few = filled({16, 16}, 0);
  Tensor y(inputs.y_shape(), DType::f32);
  const auto expect = [&](const std::string& text, auto change) {
    SelectiveScan op = inputs.op();
    op.y = y;
    change(op);
    expect_error<ArgumentError>("selective_scan: " + text, [&] { run(op, default_stream()); });
  };
  expect("A: expected none (there is A_log), got a tensor", [&](auto& op) { op.A_log = log; });
  expect("A_log: expected a tensor, or A in its place, got none", [](auto& op) { op.A = {}; });
  expect("A: expected [17, 16], got [16, 16]", [&](auto& op) { op.A = few; });
  expect("A: expected 2 dimensions, got [2, 9, 17]", [&](auto& op) { op.A = op.x; });
  expect("d_state: expected 1 to 256, got 257", [&](auto& op) { op.A = large; });
  const Tensor half = log.to(Device::cpu(), DType::bf16);
  expect("A: expected f32, got bf16", [&](auto& op) { op.A = half; });
}

TEST(SelectiveScanForms, ErrorsOfTheGradientNameTheOperand) {
  const Tensor A = filled({17, 16}, 0), few = filled({16, 16}, 0);
  for (const ScanDecays decays : {ScanDecays::log, ScanDecays::mixed}) {
    ScanCase c;
    c.decays = decays;
    const GradInputs inputs(c);
    const Gradients out(c, Device::cpu());
    Tensor dA({17, 16}, DType::f32);
    const auto expect = [&](const std::string& text, auto change) {
      run_both(inputs, out, default_stream(), 0, [&](SelectiveScanGrad op, Stream& stream) {
        change(op);
        expect_error<ArgumentError>("selective_scan_grad: " + text, [&] { run(op, stream); });
      });
    };
    if (decays == ScanDecays::log) {
      expect("dA: expected none (there is no A), got a tensor", [&](auto& op) { op.dA = dA; });
      expect("A: expected none (there is A_log), got a tensor", [&](auto& op) { op.A = A; });
    } else {
      expect("dA_log: expected none (there is no A_log), got a tensor",
             [&](auto& op) { op.dA_log = dA; });
      expect("A: expected none (there is A_log), got a tensor", [&](auto& op) { op.A_log = A; });
      expect("A_log: expected a tensor, or A in its place, got none", [](auto& op) { op.A = {}; });
      expect("A: expected [17, 16], got [16, 16]", [&](auto& op) { op.A = few; });
      expect("dA: expected [17, 16], got [17]", [](auto& op) { op.dA = op.dD; });
    }
  }
}

}  // namespace
}  // namespace mamba::testing
