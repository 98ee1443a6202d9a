// Bad calls of the operations of ops.hpp.
#include "each.hpp"
#include "ops/bad_operands.hpp"

namespace mamba {
namespace {

using namespace testing;

TEST_EACH(BadCallsOfOps, Matmul, Device device) {
  expect_refused_operands<Matmul>(
      device, 25, "matmul",
      {OPERAND(Matmul, x, Shape{2, 3, 4}), OPERAND(Matmul, weight, Shape{5, 4}),
       OPERAND(Matmul, bias, Shape{5}, f32, optional), OPERAND(Matmul, y, Shape{2, 3, 5})});
  Matmul transposed;
  transposed.transpose_weight = true;
  expect_refused_operands<Matmul>(
      device, 20, "matmul",
      {OPERAND(Matmul, x, Shape{2, 3, 4}), OPERAND(Matmul, weight, Shape{4, 5}),
       OPERAND(Matmul, y, Shape{2, 3, 5})},
      transposed);
  transposed.transpose_x = true;
  expect_refused_operands<Matmul>(
      device, 18, "matmul",
      {OPERAND(Matmul, x, Shape{2, 3, 4}), OPERAND(Matmul, weight, Shape{2, 3, 5}),
       OPERAND(Matmul, y, Shape{4, 5})},
      transposed);
}

TEST_EACH(BadCallsOfOps, CausalConv, Device device) {
  using Op = CausalConv;
  expect_refused_operands<Op>(
      device, 50, "causal_conv",
      {OPERAND(Op, x, Shape{2, 3, 4}), OPERAND(Op, weight, Shape{4, 5}),
       OPERAND(Op, bias, Shape{4}, f32, optional),
       OPERAND(Op, initial_state, Shape{2, 4, 4}, f32, optional | dense),
       OPERAND(Op, final_state, Shape{2, 4, 4}, f32, optional | dense),
       OPERAND(Op, reset, Shape{2, 3}, i32, optional),
       OPERAND(Op, step_states, Shape{2, 3, 4, 4}, f32, optional), OPERAND(Op, y, Shape{2, 3, 4})});
}

TEST_EACH(BadCallsOfOps, SelectiveScan, Device device) {
  using Op = SelectiveScan;
  Op options;
  options.chunk_steps = 16;  // CUDA has no other
  std::vector<Operand<Op>> operands{
      OPERAND(Op, x, Shape{2, 3, 4}),
      OPERAND(Op, dt, Shape{2, 3, 4}),
      OPERAND(Op, A_log, Shape{4, 5}),
      OPERAND(Op, B, Shape{2, 3, 5}),
      OPERAND(Op, C, Shape{2, 3, 5}),
      OPERAND(Op, D, Shape{4}, f32, optional),
      OPERAND(Op, z, Shape{2, 3, 4}, f32, optional),
      OPERAND(Op, dt_bias, Shape{4}, f32, optional),
      OPERAND(Op, initial_state, Shape{2, 4, 5}, f32, optional | dense),
      OPERAND(Op, final_state, Shape{2, 4, 5}, f32, optional | dense),
      OPERAND(Op, reset, Shape{2, 3}, i32, optional),
      OPERAND(Op, step_states, Shape{2, 3, 4, 5}, f32, optional),
      OPERAND(Op, y, Shape{2, 3, 4}),
      OPERAND(Op, chunk_states, Shape{2, 1, 4, 5}, f32, optional)};
  expect_refused_operands<Op>(device, 90, "selective_scan", operands, options);
  operands[2] = OPERAND(Op, A, Shape{4, 5});
  expect_refused_operands<Op>(device, 90, "selective_scan", operands, options);
}

TEST_EACH(BadCallsOfOps, Ssd, Device device) {
  using Op = Ssd;
  Op options;
  options.chunk_steps = 256;
  expect_refused_operands<Op>(
      device, 90, "ssd",
      {OPERAND(Op, x, Shape{2, 3, 8}), OPERAND(Op, dt, Shape{2, 3, 4}),
       OPERAND(Op, A_log, Shape{4}), OPERAND(Op, B, Shape{2, 3, 5}), OPERAND(Op, C, Shape{2, 3, 5}),
       OPERAND(Op, D, Shape{4}, f32, optional), OPERAND(Op, dt_bias, Shape{4}, f32, optional),
       OPERAND(Op, initial_state, Shape{2, 8, 5}, f32, optional | dense),
       OPERAND(Op, final_state, Shape{2, 8, 5}, f32, optional | dense),
       OPERAND(Op, reset, Shape{2, 3}, i32, optional),
       OPERAND(Op, step_states, Shape{2, 3, 8, 5}, f32, optional), OPERAND(Op, y, Shape{2, 3, 8}),
       OPERAND(Op, chunk_states, Shape{2, 1, 8, 5}, f32, optional)},
      options);
}

TEST_EACH(BadCallsOfOps, NormsAndActivations, Device device) {
  expect_refused_operands<AddRmsNorm>(device, 25, "add_rms_norm",
                                      {OPERAND(AddRmsNorm, x, Shape{2, 3, 4}, f32, optional),
                                       OPERAND(AddRmsNorm, residual, Shape{2, 3, 4}, f32, optional),
                                       OPERAND(AddRmsNorm, sum, Shape{2, 3, 4}, f32, optional),
                                       OPERAND(AddRmsNorm, weight, Shape{4}, f32, optional),
                                       OPERAND(AddRmsNorm, y, Shape{2, 3, 4})});
  expect_refused_operands<LayerNorm>(
      device, 25, "layer_norm",
      {OPERAND(LayerNorm, x, Shape{2, 3, 4}), OPERAND(LayerNorm, weight, Shape{4}, f32, optional),
       OPERAND(LayerNorm, bias, Shape{4}, f32, optional),
       OPERAND(LayerNorm, z, Shape{2, 3, 4}, f32, optional),
       OPERAND(LayerNorm, y, Shape{2, 3, 4})});
  expect_refused_operands<GatedRmsNorm>(
      device, 20, "gated_rms_norm",
      {OPERAND(GatedRmsNorm, x, Shape{2, 3, 4}), OPERAND(GatedRmsNorm, z, Shape{2, 3, 4}),
       OPERAND(GatedRmsNorm, weight, Shape{4}), OPERAND(GatedRmsNorm, y, Shape{2, 3, 4})});
  expect_refused_operands<Activate>(
      device, 15, "activate",
      {OPERAND(Activate, x, Shape{2, 4}), OPERAND(Activate, y, Shape{2, 4})});
  expect_refused_operands<ActivateGrad>(
      device, 22, "activate_grad",
      {OPERAND(ActivateGrad, x, Shape{2, 4}), OPERAND(ActivateGrad, dy, Shape{2, 4}),
       OPERAND(ActivateGrad, dx, Shape{2, 4})});
}

TEST_EACH(BadCallsOfOps, EmbeddingAndRows, Device device) {
  expect_refused_operands<Embedding>(
      device, 18, "embedding",
      {OPERAND(Embedding, ids, Shape{2, 3}, i32),
       OPERAND(Embedding, table, Shape{6, 4}, f32, any_float | free_rows),
       OPERAND(Embedding, y, Shape{2, 3, 4})});
  expect_refused_operands<EmbeddingGrad>(
      device, 15, "embedding_grad",
      {OPERAND(EmbeddingGrad, ids, Shape{2, 3}, i32),
       OPERAND(EmbeddingGrad, dy, Shape{2, 3, 4}, f32, any_float),
       OPERAND(EmbeddingGrad, dtable, Shape{6, 4}, f32, free_rows)});
  expect_refused_operands<CopyRows>(device, 12, "copy_rows",
                                    {OPERAND(CopyRows, from, Shape{3, 4}, f32, free_rows | dense),
                                     OPERAND(CopyRows, from_rows, Shape{2}, i32),
                                     OPERAND(CopyRows, to, Shape{2, 4}, f32, dense)});
  expect_refused_operands<ZeroRows>(
      device, 5, "zero_rows",
      {OPERAND(ZeroRows, mask, Shape{3}, i32),
       OPERAND(ZeroRows, view, Shape{3, 4}, f32, any_dtype | free_last)});
  expect_refused_operands<SumRows>(device, 5, "sum_rows",
                                   {OPERAND(SumRows, x, Shape{2, 4}, f32, any_float | free_rows),
                                    OPERAND(SumRows, y, Shape{4})});
  expect_refused_operands<SumSquares>(
      device, 6, "sum_squares",
      {OPERAND(SumSquares, x, Shape{7, 2}, f32, free_rows | free_steps | free_last | dense),
       OPERAND(SumSquares, y, Shape{1})});
}

TEST_EACH(BadCallsOfOps, Sample, Device device) {
  using Op = Sample;
  expect_refused_operands<Op>(
      device, 50, "sample",
      {OPERAND(Op, rows, Shape{1}, i32, optional | free_last), OPERAND(Op, logits, Shape{2, 4}),
       OPERAND(Op, seed, Shape{2, 2}, i32), OPERAND(Op, draws, Shape{2}, i32),
       OPERAND(Op, seen, Shape{2, 4}, i32), OPERAND(Op, ids, Shape{2}, i32),
       OPERAND(Op, temperatures, Shape{2}, f32, optional),
       OPERAND(Op, top_ks, Shape{2}, i32, optional), OPERAND(Op, top_ps, Shape{2}, f32, optional),
       OPERAND(Op, min_ps, Shape{2}, f32, optional)},
      [] {
        Op options;
        options.temperature = 1;
        options.repetition_penalty = 2;
        return options;
      }());
}

TEST_EACH(BadCallsOfOps, OutputsThatRunOverTheirInputs, Device device) {
  Stream& stream = default_stream(device);
  const Tensor memory = Tensor::zeros({64}, f32, device);
  const auto at = [&](std::int64_t offset, const Shape& shape, DType dtype = f32) {
    return TensorView(const_cast<float*>(static_cast<const float*>(memory.view().data())) + offset,
                      shape, dtype, device);
  };
  const Tensor targets = Tensor::zeros({2}, i32, device);
  Tensor loss = Tensor::zeros({2}, f32, device);
  CrossEntropy op;
  op.logits = at(0, {2, 8});
  op.targets = targets;
  op.loss = loss;
  for (const TensorView& wrong :
       {at(0, {2, 8}, DType::bf16), at(1, {2, 8}), at(8, {2, 8}), at(0, {2, 12}).columns(0, 8)}) {
    op.dlogits = wrong;
    testing::expect_error<ArgumentError>(
        "cross_entropy: dlogits: expected the memory of logits, in its dtype and pitches, or "
        "other memory, got a part of it, or in another form",
        [&] { run(op, stream); });
  }
  for (const TensorView& right : {at(0, {2, 8}), at(16, {2, 8}), TensorView()}) {
    op.dlogits = right;
    EXPECT_NO_THROW(run(op, stream));
  }
  Activate columns;  // beside each other in one larger tensor
  columns.x = at(0, {2, 16}).columns(0, 8);
  columns.y = at(0, {2, 16}).columns(8, 8);
  EXPECT_NO_THROW(run(columns, stream));
  columns.y = at(0, {2, 16}).columns(7, 8);
  EXPECT_THROW(run(columns, stream), ArgumentError);
  columns.x = at(0, {2, 4, 4}).steps(0, 2);
  columns.y = at(0, {2, 4, 4}).steps(2, 2);
  EXPECT_NO_THROW(run(columns, stream));
  columns.y = at(0, {2, 4, 4}).steps(1, 2);
  EXPECT_THROW(run(columns, stream), ArgumentError);
  CopyRows rows;
  rows.from = at(0, {3, 8});
  rows.to = at(24, {3, 8});
  EXPECT_NO_THROW(run(rows, stream));
  for (const std::int64_t offset : {0, 8, 23}) {
    rows.to = at(offset, {3, 8});
    testing::expect_error<ArgumentError>(
        "copy_rows: to: expected other memory than from, got a part of it",
        [&] { run(rows, stream); });
  }
}

}  // namespace
}  // namespace mamba
