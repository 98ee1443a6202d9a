// run(op, stream): every operand is checked here, once, for every device.
#include <mamba/ops.hpp>

#include <utility>

#include <fmt/format.h>

#include <mamba/check.hpp>
#include <mamba/detail/fused_ops.hpp>
#include <mamba/detail/scan_chunk.hpp>

#include "host/core/row_map.hpp"
#include "host/ops/dispatch.hpp"
#include "host/ops/operands.hpp"

namespace mamba {

namespace {

// A row map, and what it says about the number of rows of the state.
void check_state_rows(const Operands& operands, const RowMap& rows, std::int64_t batch,
                      std::int64_t state_rows, bool has_state, Stream& stream) {
  const bool mapped = rows.read && rows.write;
  if (mapped && !has_state) operands.fail("initial_state", "a state for the rows to be in", "none");
  check_rows(operands.where(), rows, batch, state_rows, stream);
  if (!mapped && has_state && state_rows != batch) {
    operands.fail("initial_state", fmt::format("{} rows (one per batch row)", batch),
                  fmt::format("{}", state_rows));
  }
}

// initial_state, final_state, rows, reset and step_states, which both recurrences share.
template <class Op>
void check_recurrence(const Operands& operands, const Op& op, std::int64_t width, DType dtype,
                      Stream& stream) {
  const std::int64_t batch = op.x.dim(0);
  const std::int64_t time = op.x.dim(1);
  const std::int64_t channels = op.x.dim(2);
  const ConstTensorView& state = op.initial_state ? op.initial_state : op.final_state;
  if (state) operands.rank(op.initial_state ? "initial_state" : "final_state", state, 3);
  const std::int64_t state_rows = state ? state.dim(0) : batch;
  const Shape state_shape{state_rows, channels, width};
  operands.optional("initial_state", op.initial_state, state_shape, dtype);
  operands.optional("final_state", op.final_state, state_shape, dtype);
  operands.dense("initial_state", op.initial_state);
  operands.dense("final_state", op.final_state);
  operands.same_or_apart("final_state", op.final_state, "initial_state", op.initial_state);
  check_state_rows(operands, op.rows, batch, state_rows, static_cast<bool>(state), stream);
  operands.optional("reset", op.reset, {batch, time}, DType::i32);
  operands.optional("step_states", op.step_states, {batch, time, channels, width}, dtype);
}

void check_operands(const Matmul& op, const Stream& stream) {
  const Operands operands("matmul", stream);
  check::present("matmul", "x", op.x);
  operands.at_most_rank_3("x", op.x);
  Shape y_shape;
  std::int64_t out = 0;
  if (op.transpose_x) {
    if (!op.transpose_weight) operands.fail("transpose_weight", "true with transpose_x", "false");
    check::present("matmul", "weight", op.weight);
    out = op.weight.shape().back();
    operands.is_storage("x", op.x, op.x.shape());
    operands.is("weight", op.weight, with_channels(op.x, out), op.x.dtype());
    y_shape = {op.x.shape().back(), out};
  } else {
    operands.rank("weight", op.weight, 2);
    out = op.weight.dim(op.transpose_weight ? 1 : 0);
    operands.is_storage("x", op.x, with_channels(op.x, op.weight.dim(op.transpose_weight ? 0 : 1)));
    if (op.transpose_weight) {  // which gradients need, of a weight that is stored as x is
      operands.is("weight", op.weight, op.weight.shape(), op.x.dtype());
    } else {
      operands.is_weight("weight", op.weight, op.weight.shape(), op.x.dtype());
    }
    y_shape = with_channels(op.x, out);
  }
  operands.optional("bias", op.bias, {out}, op.x.dtype());
  check::present("matmul", "y", op.y);
  operands.is_storage_or_f32("y", op.y, y_shape, op.x.dtype());
}

void check_operands(const CausalConv& op, Stream& stream) {
  const Operands operands("causal_conv", stream);
  operands.rank("x", op.x, 3);
  operands.is_storage("x", op.x, op.x.shape());
  const std::int64_t channels = op.x.dim(2);
  operands.rank("weight", op.weight, 2);
  const std::int64_t width = op.weight.dim(1);
  check::range("causal_conv", "width", width, 1, std::int64_t{1} << 20);
  operands.is("weight", op.weight, {channels, width}, DType::f32);
  operands.optional("bias", op.bias, {channels}, DType::f32);
  operands.is("y", op.y, op.x.shape(), op.x.dtype());
  check_recurrence(operands, op, width - 1, op.x.dtype(), stream);
}

void check_operands(const AddRmsNorm& op, const Stream& stream) {
  const Operands operands("add_rms_norm", stream);
  check::present("add_rms_norm", "y", op.y);
  operands.is_storage("y", op.y, op.y.shape());
  if (!op.x && !op.residual) operands.fail("x", "x, residual or both", "neither");
  operands.optional("x", op.x, op.y.shape(), op.y.dtype());
  operands.optional("residual", op.residual, op.y.shape(), DType::f32);
  operands.optional("sum", op.sum, op.y.shape(), DType::f32);
  operands.same_or_apart("sum", op.sum, "residual", op.residual);
  operands.same_or_apart("y", op.y, "x", op.x);
  operands.optional("weight", op.weight, {op.y.shape().back()}, DType::f32);
  operands.finite("epsilon", op.epsilon, 0);
  operands.at_most_rank_3("y", op.y);
}

}  // namespace

void run(const Matmul& op, Stream& stream) {
  check_operands(op, stream);
  if (op.y.count() > 0) dispatch(op, stream);
}

void run(const CausalConv& op, Stream& stream) {
  check_operands(op, stream);
  dispatch(op, stream);
}

void run(const AddRmsNorm& op, Stream& stream) {
  check_operands(op, stream);
  if (op.y.count() > 0) dispatch(op, stream);
}

void detail::run(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv,
                 Stream& stream) {
  check_operands(norm, stream);
  check_operands(product, stream);
  check_operands(conv, stream);
  if (stream.device().is_cuda() && cuda::in_one_pass(norm, product, conv)) {
    const ProfilerRange range("add_rms_norm, matmul, causal_conv");
    return cuda::run(norm, product, conv, stream);
  }
  if (norm.y.count() > 0) dispatch(norm, stream);
  if (product.y.count() > 0) dispatch(product, stream);
  dispatch(conv, stream);
}

void run(const SelectiveScan& op, Stream& stream) {
  const Operands operands("selective_scan", stream);
  operands.rank("x", op.x, 3);
  operands.is_storage("x", op.x, op.x.shape());
  const DType dtype = op.x.dtype();
  const std::int64_t channels = op.x.dim(2);
  const std::int64_t d_state = check_decays(operands, op);
  if (op.dt_weight) {
    operands.rank("dt", op.dt, 3);
    operands.is("dt", op.dt, with_channels(op.x, op.dt.dim(2)), dtype);
    operands.is_weight("dt_weight", op.dt_weight, {channels, op.dt.dim(2)}, dtype);
  } else {
    operands.is("dt", op.dt, op.x.shape(), dtype);
  }
  operands.is("B", op.B, with_channels(op.x, d_state), dtype);
  operands.is("C", op.C, with_channels(op.x, d_state), dtype);
  operands.optional("D", op.D, {channels}, DType::f32);
  operands.optional("z", op.z, op.x.shape(), dtype);
  operands.optional("dt_bias", op.dt_bias, {channels}, DType::f32);
  operands.is("y", op.y, op.x.shape(), dtype);
  operands.same_or_apart("y", op.y, "x", op.x);
  operands.same_or_apart("y", op.y, "dt", op.dt);
  operands.same_or_apart("y", op.y, "z", op.z);
  if (op.chunk_states) {
    operands.is("chunk_states", op.chunk_states,
                chunk_states_shape(operands, op.x, d_state, op.chunk_steps), DType::f32);
    operands.dense("chunk_states", op.chunk_states);
  }
  check_recurrence(operands, op, d_state, DType::f32, stream);
  if (!op.dt_weight || (stream.device().is_cuda() && cuda::projects_dt(op))) {
    return dispatch(op, stream);
  }
  Scratch scratch(stream);
  SelectiveScan projected = op;
  Matmul dt_proj;
  dt_proj.x = op.dt;
  dt_proj.weight = std::exchange(projected.dt_weight, {});
  dt_proj.y = scratch.take(op.x.shape(), dtype);
  projected.dt = dt_proj.y;
  dispatch(dt_proj, stream);
  dispatch(projected, stream);
}

std::int64_t detail::scan_chunk_steps(const SelectiveScan& op, const Stream& stream) {
  const Operands operands("scan_chunk_steps", stream);
  operands.rank("x", op.x, 3);
  check_decays(operands, op);
  return stream.device().is_cuda() ? cuda::scan_chunk_steps(op, stream)
                                   : host::scan_chunk_steps(op, stream);
}

void run(const Ssd& op, Stream& stream) {
  const Operands operands("ssd", stream);
  const std::int64_t d_state = check_ssd(operands, op);
  operands.is("y", op.y, op.x.shape(), op.x.dtype());
  operands.same_or_apart("y", op.y, "x", op.x);
  if (op.chunk_states) {
    operands.is("chunk_states", op.chunk_states,
                chunk_states_shape(operands, op.x, d_state, op.chunk_steps), DType::f32);
    operands.dense("chunk_states", op.chunk_states);
  }
  check_recurrence(operands, op, d_state, DType::f32, stream);
  dispatch(op, stream);
}

std::int64_t detail::scan_chunk_steps(const Ssd& op, const Stream& stream) {
  check_ssd(Operands("scan_chunk_steps", stream), op);
  return stream.device().is_cuda() ? cuda::scan_chunk_steps(op, stream)
                                   : host::scan_chunk_steps(op, stream);
}

void run(const LayerNorm& op, Stream& stream) {
  const Operands operands("layer_norm", stream);
  check::present("layer_norm", "y", op.y);
  operands.is_storage("y", op.y, op.y.shape());
  operands.is("x", op.x, op.y.shape(), op.y.dtype());
  operands.optional("weight", op.weight, {op.y.shape().back()}, DType::f32);
  operands.optional("bias", op.bias, {op.y.shape().back()}, DType::f32);
  operands.optional("z", op.z, op.y.shape(), op.y.dtype());
  operands.same_or_apart("y", op.y, "x", op.x);
  operands.same_or_apart("y", op.y, "z", op.z);
  operands.finite("epsilon", op.epsilon, 0);
  operands.at_most_rank_3("y", op.y);
  if (op.y.count() > 0) dispatch(op, stream);
}

void run(const GatedRmsNorm& op, Stream& stream) {
  const Operands operands("gated_rms_norm", stream);
  check::present("gated_rms_norm", "y", op.y);
  operands.is_storage("y", op.y, op.y.shape());
  const std::int64_t channels = op.y.shape().back();
  operands.is("x", op.x, op.y.shape(), op.y.dtype());
  operands.is("z", op.z, op.y.shape(), op.y.dtype());
  check_norm_weight(operands, op.norm, op.weight, channels);
  operands.same_or_apart("y", op.y, "x", op.x);
  operands.same_or_apart("y", op.y, "z", op.z);
  operands.divides("groups", op.groups, channels, "channels");
  operands.finite("epsilon", op.epsilon, 0);
  operands.at_most_rank_3("y", op.y);
  if (op.y.count() > 0) dispatch(op, stream);
}

void run(const Embedding& op, Stream& stream) {
  const Operands operands("embedding", stream);
  operands.rank("ids", op.ids, 2);
  operands.is("ids", op.ids, op.ids.shape(), DType::i32);
  operands.rank("table", op.table, 2);
  operands.is_storage("table", op.table, op.table.shape());
  check::dtype("embedding", "y", op.y, {op.table.dtype(), DType::f32});
  operands.is("y", op.y, {op.ids.dim(0), op.ids.dim(1), op.table.dim(1)}, op.y.dtype());
  dispatch(op, stream);
}

namespace {

// A list of distinct or repeatable row numbers below `rows`; its values are checked on the CPU
// only.
void check_row_list(const Operands& operands, const char* name, const ConstTensorView& list,
                    std::int64_t n, std::int64_t rows, bool distinct) {
  operands.is(name, list, {n}, DType::i32);
  if (list.device().is_cuda()) return;
  const auto* row = list.data<std::int32_t>();
  for (std::int64_t i = 0; i < n; ++i) {
    if (row[i] < 0 || row[i] >= rows) {
      operands.fail(name, fmt::format("rows 0 to {}", rows - 1), fmt::format("{}", row[i]));
    }
    for (std::int64_t j = 0; distinct && j < i; ++j) {
      if (row[j] == row[i]) {
        operands.fail(name, "every row at most once", fmt::format("{} twice", row[i]));
      }
    }
  }
}

// Values of an option of each row; on the CPU those that are used are checked like one for all.
template <class T>
void check_each(const Operands& operands, const char* name, const ConstTensorView& values,
                const Sample& op, DType dtype, T low, T high) {
  operands.optional(name, values, {op.logits.dim(0)}, dtype);
  if (!values || values.device().is_cuda()) return;
  const std::int64_t count = op.rows ? op.rows.dim(0) : values.count();
  for (std::int64_t i = 0; i < count; ++i) {
    const T value = values.data<T>()[op.rows ? op.rows.data<std::int32_t>()[i] : i];
    if (!(value >= low && value <= high)) {
      operands.fail(name, fmt::format("{} to {}", low, high), fmt::format("{}", value));
    }
  }
}

}  // namespace

void run(const Sample& op, Stream& stream) {
  const Operands operands("sample", stream);
  operands.rank("logits", op.logits, 2);
  const std::int64_t batch = op.logits.dim(0);
  const std::int64_t vocab = op.logits.dim(1);
  operands.is("logits", op.logits, op.logits.shape(), DType::f32);
  check::range("sample", "vocab", vocab, 1, std::int64_t{1} << 30);
  operands.is("ids", op.ids, {batch}, DType::i32);
  if (op.rows) {
    operands.rank("rows", op.rows, 1);
    check_row_list(operands, "rows", op.rows, op.rows.dim(0), batch, /*distinct=*/true);
  }
  const auto within = [&](const char* name, float value, float low, float high, const char* names,
                          const ConstTensorView& values) {
    if (!(value >= low && value <= high)) {
      operands.fail(name, fmt::format("{} to {}", low, high), fmt::format("{}", value));
    }
    check_each(operands, names, values, op, DType::f32, low, high);
  };
  within("temperature", op.temperature, 0, 1e6f, "temperatures", op.temperatures);
  within("top_p", op.top_p, 0, 1, "top_ps", op.top_ps);
  within("min_p", op.min_p, 0, 1, "min_ps", op.min_ps);
  within("repetition_penalty", op.repetition_penalty, 1e-3f, 1e3f, "repetition_penalties",
         op.repetition_penalties);
  check::range("sample", "top_k", op.top_k, 0, std::int64_t{1} << 30);
  check_each<std::int32_t>(operands, "top_ks", op.top_ks, op, DType::i32, 0, 1 << 30);
  if (op.temperature > 0 || op.temperatures) {
    operands.is("seed", op.seed, {batch, 2}, DType::i32);
    operands.is("draws", op.draws, {batch}, DType::i32);
  }
  if (op.repetition_penalty != 1 || op.repetition_penalties || op.seen) {
    operands.is("seen", op.seen, {batch, vocab}, DType::i32);
  }
  dispatch(op, stream);
}

void run(const CopyRows& op, Stream& stream) {
  const Operands operands("copy_rows", stream);
  check::present("copy_rows", "from", op.from);
  operands.is("from", op.from, op.from.shape(), op.from.dtype());
  check::present("copy_rows", "to", op.to);
  const std::int64_t n = op.from_rows ? op.from_rows.dim(0)
                         : op.to_rows ? op.to_rows.dim(0)
                                      : op.from.dim(0);
  operands.is("to", op.to, op.from.shape().with(0, op.to_rows ? op.to.dim(0) : n), op.from.dtype());
  operands.dense("from", op.from);
  operands.dense("to", op.to);
  operands.apart("to", op.to, "from", op.from);
  if (op.from_rows) {
    check_row_list(operands, "from_rows", op.from_rows, n, op.from.dim(0), false);
  } else {
    operands.is("from", op.from, op.from.shape().with(0, n), op.from.dtype());
  }
  if (op.to_rows) check_row_list(operands, "to_rows", op.to_rows, n, op.to.dim(0), true);
  if (op.from.count() > 0 && op.to.count() > 0) dispatch(op, stream);
}

void run(const ZeroRows& op, Stream& stream) {
  const Operands operands("zero_rows", stream);
  check::present("zero_rows", "view", op.view);
  operands.is("view", op.view, op.view.shape(), op.view.dtype());
  if (op.mask) {
    operands.is("mask", op.mask, {op.view.dim(0)}, DType::i32);
  } else {
    operands.is("padding.read", op.padding.read, {op.view.dim(0)}, DType::i32);
    operands.is("padding.write", op.padding.write, {op.view.dim(0)}, DType::i32);
  }
  if (op.view.count() > 0) dispatch(op, stream);
}

}  // namespace mamba
