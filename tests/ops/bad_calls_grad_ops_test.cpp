// Bad calls of gradients and of what training needs beside them.
#include "each.hpp"
#include "ops/bad_operands.hpp"

namespace mamba {
namespace {

using namespace testing;

TEST_EACH(BadCallsOfOps, CausalConvGrad, Device device) {
  using Op = CausalConvGrad;
  expect_refused_operands<Op>(
      device, 70, "causal_conv_grad",
      {OPERAND(Op, x, Shape{2, 3, 4}), OPERAND(Op, weight, Shape{4, 5}),
       OPERAND(Op, bias, Shape{4}, f32, optional),
       OPERAND(Op, initial_state, Shape{2, 4, 4}, f32, optional | dense),
       OPERAND(Op, reset, Shape{2, 3}, i32, optional), OPERAND(Op, dy, Shape{2, 3, 4}),
       OPERAND(Op, dfinal_state, Shape{2, 4, 4}, f32, optional | dense),
       OPERAND(Op, dinitial_state, Shape{2, 4, 4}, f32, optional | dense),
       OPERAND(Op, dx, Shape{2, 3, 4}), OPERAND(Op, dweight, Shape{4, 5}, f32, optional | dense),
       OPERAND(Op, dbias, Shape{4}, f32, optional)});
}

TEST_EACH(BadCallsOfOps, SelectiveScanGrad, Device device) {
  using Op = SelectiveScanGrad;
  Op options;
  options.chunk_steps = 16;  // CUDA has no other
  std::vector<Operand<Op>> operands{
      OPERAND(Op, x, Shape{2, 3, 4}),
      OPERAND(Op, dt, Shape{2, 3, 4}),
      OPERAND(Op, A_log, Shape{4, 5}),
      OPERAND(Op, B, Shape{2, 3, 5}),
      OPERAND(Op, C, Shape{2, 3, 5}),
      OPERAND(Op, D, Shape{4}),
      OPERAND(Op, z, Shape{2, 3, 4}),
      OPERAND(Op, dt_bias, Shape{4}),
      OPERAND(Op, reset, Shape{2, 3}, i32, optional),
      OPERAND(Op, chunk_states, Shape{2, 1, 4, 5}),
      OPERAND(Op, dy, Shape{2, 3, 4}),
      OPERAND(Op, dfinal_state, Shape{2, 4, 5}, f32, optional | dense),
      OPERAND(Op, dinitial_state, Shape{2, 4, 5}, f32, optional | dense),
      OPERAND(Op, dx, Shape{2, 3, 4}),
      OPERAND(Op, ddt, Shape{2, 3, 4}),
      OPERAND(Op, dz, Shape{2, 3, 4}),
      OPERAND(Op, dB, Shape{2, 3, 5}),
      OPERAND(Op, dC, Shape{2, 3, 5}),
      OPERAND(Op, dA_log, Shape{4, 5}, f32, optional | dense),
      OPERAND(Op, dD, Shape{4}, f32, optional),
      OPERAND(Op, ddt_bias, Shape{4}, f32, optional),
      OPERAND(Op, y, Shape{2, 3, 4}, f32, optional)};
  expect_refused_operands<Op>(device, 130, "selective_scan_grad", operands, options);
  for (Operand<Op>& one : operands) {
    if (one.name == std::string("A_log")) one = OPERAND(Op, A, Shape{4, 5});
    if (one.name == std::string("dA_log")) {
      one = OPERAND(Op, dA, Shape{4, 5}, f32, optional | dense);
    }
  }
  expect_refused_operands<Op>(device, 130, "selective_scan_grad", operands, options);
}

TEST_EACH(BadCallsOfOps, SsdGrad, Device device) {
  using Op = SsdGrad;
  Op options;
  options.chunk_steps = 256;
  expect_refused_operands<Op>(
      device, 125, "ssd_grad",
      {OPERAND(Op, x, Shape{2, 3, 8}), OPERAND(Op, dt, Shape{2, 3, 4}),
       OPERAND(Op, A_log, Shape{4}), OPERAND(Op, B, Shape{2, 3, 5}), OPERAND(Op, C, Shape{2, 3, 5}),
       OPERAND(Op, D, Shape{4}), OPERAND(Op, dt_bias, Shape{4}),
       OPERAND(Op, reset, Shape{2, 3}, i32, optional), OPERAND(Op, chunk_states, Shape{2, 1, 8, 5}),
       OPERAND(Op, dy, Shape{2, 3, 8}),
       OPERAND(Op, dfinal_state, Shape{2, 8, 5}, f32, optional | dense),
       OPERAND(Op, dinitial_state, Shape{2, 8, 5}, f32, optional | dense),
       OPERAND(Op, dx, Shape{2, 3, 8}), OPERAND(Op, ddt, Shape{2, 3, 4}),
       OPERAND(Op, dB, Shape{2, 3, 5}), OPERAND(Op, dC, Shape{2, 3, 5}),
       OPERAND(Op, dA_log, Shape{4}, f32, optional), OPERAND(Op, dD, Shape{4}, f32, optional),
       OPERAND(Op, ddt_bias, Shape{4}, f32, optional)},
      options);
}

TEST_EACH(BadCallsOfOps, NormGradients, Device device) {
  expect_refused_operands<AddRmsNormGrad>(
      device, 35, "add_rms_norm_grad",
      {OPERAND(AddRmsNormGrad, sum, Shape{2, 3, 4}), OPERAND(AddRmsNormGrad, weight, Shape{4}),
       OPERAND(AddRmsNormGrad, dy, Shape{2, 3, 4}),
       OPERAND(AddRmsNormGrad, dresidual, Shape{2, 3, 4}, f32, optional),
       OPERAND(AddRmsNormGrad, dx, Shape{2, 3, 4}, f32, optional),
       OPERAND(AddRmsNormGrad, dweight, Shape{4}, f32, optional)});
  expect_refused_operands<LayerNormGrad>(
      device, 50, "layer_norm_grad",
      {OPERAND(LayerNormGrad, x, Shape{2, 3, 4}), OPERAND(LayerNormGrad, weight, Shape{4}),
       OPERAND(LayerNormGrad, bias, Shape{4}), OPERAND(LayerNormGrad, z, Shape{2, 3, 4}),
       OPERAND(LayerNormGrad, dy, Shape{2, 3, 4}), OPERAND(LayerNormGrad, dx, Shape{2, 3, 4}),
       OPERAND(LayerNormGrad, dz, Shape{2, 3, 4}),
       OPERAND(LayerNormGrad, dweight, Shape{4}, f32, optional),
       OPERAND(LayerNormGrad, dbias, Shape{4}, f32, optional)});
  expect_refused_operands<GatedRmsNormGrad>(
      device, 40, "gated_rms_norm_grad",
      {OPERAND(GatedRmsNormGrad, x, Shape{2, 3, 4}), OPERAND(GatedRmsNormGrad, z, Shape{2, 3, 4}),
       OPERAND(GatedRmsNormGrad, weight, Shape{4}), OPERAND(GatedRmsNormGrad, dy, Shape{2, 3, 4}),
       OPERAND(GatedRmsNormGrad, dx, Shape{2, 3, 4}), OPERAND(GatedRmsNormGrad, dz, Shape{2, 3, 4}),
       OPERAND(GatedRmsNormGrad, dweight, Shape{4}, f32, optional)});
}

TEST_EACH(BadCallsOfOps, LossesAndTheOptimiser, Device device) {
  expect_refused_operands<CrossEntropy>(
      device, 25, "cross_entropy",
      {OPERAND(CrossEntropy, logits, Shape{2, 3, 4}, f32, any_float),
       OPERAND(CrossEntropy, targets, Shape{2, 3}, i32, dense),
       OPERAND(CrossEntropy, loss, Shape{2, 3}, f32, dense),
       OPERAND(CrossEntropy, dlogits, Shape{2, 3, 4}, f32, any_float | optional)});
  expect_refused_operands<Categorical>(
      device, 25, "categorical",
      {OPERAND(Categorical, logits, Shape{2, 4}), OPERAND(Categorical, actions, Shape{2}, i32),
       OPERAND(Categorical, log_prob, Shape{2}, f32, optional),
       OPERAND(Categorical, entropy, Shape{2}, f32, optional),
       OPERAND(Categorical, log_probs, Shape{2, 4}, f32, optional)});
  expect_refused_operands<CategoricalGrad>(
      device, 25, "categorical_grad",
      {OPERAND(CategoricalGrad, logits, Shape{2, 4}),
       OPERAND(CategoricalGrad, actions, Shape{2}, i32),
       OPERAND(CategoricalGrad, dlog_prob, Shape{2}, f32, optional),
       OPERAND(CategoricalGrad, dentropy, Shape{2}, f32, optional),
       OPERAND(CategoricalGrad, dlogits, Shape{2, 4})});
  AdamWStep options;
  options.max_norm = 1;
  expect_refused_operands<AdamWStep>(
      device, 40, "adamw_step",
      {OPERAND(AdamWStep, weight, Shape{3, 4}, f32, dense),
       OPERAND(AdamWStep, stored, Shape{3, 4}, f32, optional | any_float | dense),
       OPERAND(AdamWStep, gradient, Shape{3, 4}, f32, dense),
       OPERAND(AdamWStep, m, Shape{3, 4}, f32, dense),
       OPERAND(AdamWStep, v, Shape{3, 4}, f32, dense), OPERAND(AdamWStep, squares, Shape{1})},
      options);
}

}  // namespace
}  // namespace mamba
