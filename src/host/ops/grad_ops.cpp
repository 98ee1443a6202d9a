// run(op, stream) of the gradients: every operand is checked here, once, for every device.
#include <mamba/grad_ops.hpp>

#include "host/ops/dispatch.hpp"
#include "host/ops/operands.hpp"

namespace mamba {

void run(const SumRows& op, Stream& stream) {
  const Operands operands("sum_rows", stream);
  check::present("sum_rows", "x", op.x);
  operands.is_storage("x", op.x, op.x.shape());
  operands.at_most_rank_3("x", op.x);
  operands.is("y", op.y, {op.x.shape().back()}, DType::f32);
  if (op.y.count() > 0) dispatch(op, stream);
}

void run(const CausalConvGrad& op, Stream& stream) {
  const Operands operands("causal_conv_grad", stream);
  operands.rank("x", op.x, 3);
  operands.is_storage("x", op.x, op.x.shape());
  const DType dtype = op.x.dtype();
  const std::int64_t channels = op.x.dim(2);
  operands.rank("weight", op.weight, 2);
  const std::int64_t width = op.weight.dim(1);
  check::range("causal_conv_grad", "width", width, 1, std::int64_t{1} << 20);
  operands.is("weight", op.weight, {channels, width}, DType::f32);
  operands.optional("bias", op.bias, {channels}, DType::f32);
  const Shape state{op.x.dim(0), channels, width - 1};
  operands.optional("initial_state", op.initial_state, state, dtype);
  operands.optional("reset", op.reset, {op.x.dim(0), op.x.dim(1)}, DType::i32);
  operands.is("dy", op.dy, op.x.shape(), dtype);
  operands.optional("dfinal_state", op.dfinal_state, state, dtype);
  operands.optional("dinitial_state", op.dinitial_state, state, dtype);
  operands.is("dx", op.dx, op.x.shape(), dtype);
  operands.optional("dweight", op.dweight, op.weight.shape(), DType::f32);
  operands.optional("dbias", op.dbias, {channels}, DType::f32);
  operands.dense("initial_state", op.initial_state);
  operands.dense("dfinal_state", op.dfinal_state);
  operands.dense("dinitial_state", op.dinitial_state);
  operands.dense("dweight", op.dweight);
  operands.same_or_apart("dinitial_state", op.dinitial_state, "dfinal_state", op.dfinal_state);
  dispatch(op, stream);
}

void run(const SelectiveScanGrad& op, Stream& stream) {
  const Operands operands("selective_scan_grad", stream);
  operands.rank("x", op.x, 3);
  operands.is_storage("x", op.x, op.x.shape());
  const Shape& shape = op.x.shape();
  const DType dtype = op.x.dtype();
  const std::int64_t channels = op.x.dim(2);
  const std::int64_t d_state = check_decays(operands, op);
  operands.is("dt", op.dt, shape, dtype);
  operands.is("B", op.B, with_channels(op.x, d_state), dtype);
  operands.is("C", op.C, with_channels(op.x, d_state), dtype);
  operands.optional("D", op.D, {channels}, DType::f32);
  operands.optional("z", op.z, shape, dtype);
  operands.optional("dt_bias", op.dt_bias, {channels}, DType::f32);
  operands.optional("reset", op.reset, {op.x.dim(0), op.x.dim(1)}, DType::i32);
  operands.is("chunk_states", op.chunk_states,
              chunk_states_shape(operands, op.x, d_state, op.chunk_steps), DType::f32);
  operands.dense("chunk_states", op.chunk_states);
  operands.is("dy", op.dy, shape, dtype);
  const Shape state{op.x.dim(0), channels, d_state};
  operands.optional("dfinal_state", op.dfinal_state, state, DType::f32);
  operands.optional("dinitial_state", op.dinitial_state, state, DType::f32);
  operands.dense("dfinal_state", op.dfinal_state);
  operands.dense("dinitial_state", op.dinitial_state);
  operands.same_or_apart("dinitial_state", op.dinitial_state, "dfinal_state", op.dfinal_state);
  operands.is("dx", op.dx, shape, dtype);
  operands.is("ddt", op.ddt, shape, dtype);
  operands.not_without("dz", op.dz, "z", op.z);
  if (op.z) operands.is("dz", op.dz, shape, dtype);
  operands.is("dB", op.dB, op.B.shape(), dtype);
  operands.is("dC", op.dC, op.C.shape(), dtype);
  operands.not_without("dA_log", op.dA_log, "A_log", op.A_log);
  operands.optional("dA_log", op.dA_log, {channels, d_state}, DType::f32);
  operands.dense("dA_log", op.dA_log);
  operands.not_without("dA", op.dA, "A", op.A);
  operands.optional("dA", op.dA, {channels, d_state}, DType::f32);
  operands.dense("dA", op.dA);
  operands.not_without("dD", op.dD, "D", op.D);
  operands.optional("dD", op.dD, {channels}, DType::f32);
  operands.not_without("ddt_bias", op.ddt_bias, "dt_bias", op.dt_bias);
  operands.optional("ddt_bias", op.ddt_bias, {channels}, DType::f32);
  operands.optional("y", op.y, shape, dtype);
  dispatch(op, stream);
}

void run(const SsdGrad& op, Stream& stream) {
  const Operands operands("ssd_grad", stream);
  const std::int64_t d_state = check_ssd(operands, op);
  const DType dtype = op.x.dtype();
  operands.optional("reset", op.reset, {op.x.dim(0), op.x.dim(1)}, DType::i32);
  operands.is("chunk_states", op.chunk_states,
              chunk_states_shape(operands, op.x, d_state, op.chunk_steps), DType::f32);
  operands.dense("chunk_states", op.chunk_states);
  operands.is("dy", op.dy, op.x.shape(), dtype);
  const Shape state{op.x.dim(0), op.x.dim(2), d_state};
  operands.optional("dfinal_state", op.dfinal_state, state, DType::f32);
  operands.optional("dinitial_state", op.dinitial_state, state, DType::f32);
  operands.dense("dfinal_state", op.dfinal_state);
  operands.dense("dinitial_state", op.dinitial_state);
  operands.same_or_apart("dinitial_state", op.dinitial_state, "dfinal_state", op.dfinal_state);
  operands.is("dx", op.dx, op.x.shape(), dtype);
  operands.is("ddt", op.ddt, op.dt.shape(), dtype);
  operands.is("dB", op.dB, op.B.shape(), dtype);
  operands.is("dC", op.dC, op.C.shape(), dtype);
  operands.optional("dA_log", op.dA_log, op.A_log.shape(), DType::f32);
  operands.not_without("dD", op.dD, "D", op.D);
  operands.optional("dD", op.dD, op.A_log.shape(), DType::f32);
  operands.not_without("ddt_bias", op.ddt_bias, "dt_bias", op.dt_bias);
  operands.optional("ddt_bias", op.ddt_bias, op.A_log.shape(), DType::f32);
  dispatch(op, stream);
}

void run(const AddRmsNormGrad& op, Stream& stream) {
  const Operands operands("add_rms_norm_grad", stream);
  check::present("add_rms_norm_grad", "dy", op.dy);
  operands.is_storage("dy", op.dy, op.dy.shape());
  const Shape& shape = op.dy.shape();
  const Shape channels{shape.back()};
  check::present("add_rms_norm_grad", "sum", op.sum);
  operands.is_storage_or_f32("sum", op.sum, shape, op.dy.dtype());
  operands.optional("weight", op.weight, channels, DType::f32);
  operands.optional("dresidual", op.dresidual, shape, DType::f32);
  operands.optional("dx", op.dx, shape, op.dy.dtype());
  operands.same_or_apart("dx", op.dx, "dy", op.dy);
  operands.not_without("dweight", op.dweight, "weight", op.weight);
  operands.optional("dweight", op.dweight, channels, DType::f32);
  operands.finite("epsilon", op.epsilon, 0);
  operands.at_most_rank_3("dy", op.dy);
  if (shape.back() > 0) dispatch(op, stream);
}

void run(const LayerNormGrad& op, Stream& stream) {
  const Operands operands("layer_norm_grad", stream);
  check::present("layer_norm_grad", "x", op.x);
  operands.is_storage("x", op.x, op.x.shape());
  const Shape& shape = op.x.shape();
  const Shape channels{shape.back()};
  operands.optional("weight", op.weight, channels, DType::f32);
  operands.optional("bias", op.bias, channels, DType::f32);
  operands.optional("z", op.z, shape, op.x.dtype());
  operands.is("dy", op.dy, shape, op.x.dtype());
  operands.is("dx", op.dx, shape, op.x.dtype());
  operands.same_or_apart("dx", op.dx, "dy", op.dy);
  operands.same_or_apart("dx", op.dx, "x", op.x);
  operands.not_without("dz", op.dz, "z", op.z);
  if (op.z) operands.is("dz", op.dz, shape, op.x.dtype());
  operands.not_without("dweight", op.dweight, "weight", op.weight);
  operands.optional("dweight", op.dweight, channels, DType::f32);
  operands.not_without("dbias", op.dbias, "bias", op.bias);
  operands.optional("dbias", op.dbias, channels, DType::f32);
  operands.finite("epsilon", op.epsilon, 0);
  operands.at_most_rank_3("x", op.x);
  if (shape.back() > 0) dispatch(op, stream);
}

void run(const GatedRmsNormGrad& op, Stream& stream) {
  const Operands operands("gated_rms_norm_grad", stream);
  check::present("gated_rms_norm_grad", "x", op.x);
  operands.is_storage("x", op.x, op.x.shape());
  const Shape& shape = op.x.shape();
  operands.is("z", op.z, shape, op.x.dtype());
  check_norm_weight(operands, op.norm, op.weight, shape.back());
  operands.is("dy", op.dy, shape, op.x.dtype());
  operands.is("dx", op.dx, shape, op.x.dtype());
  operands.is("dz", op.dz, shape, op.x.dtype());
  operands.same_or_apart("dx", op.dx, "dy", op.dy);
  operands.same_or_apart("dx", op.dx, "x", op.x);
  operands.apart("dx", op.dx, "z", op.z);
  operands.apart("dz", op.dz, "dx", op.dx);
  operands.apart("dz", op.dz, "dy", op.dy);
  operands.apart("dz", op.dz, "x", op.x);
  operands.apart("dz", op.dz, "z", op.z);
  operands.not_without("dweight", op.dweight, "weight", op.weight);
  operands.optional("dweight", op.dweight, {shape.back()}, DType::f32);
  operands.divides("groups", op.groups, shape.back(), "channels");
  operands.finite("epsilon", op.epsilon, 0);
  operands.at_most_rank_3("x", op.x);
  if (shape.back() > 0) dispatch(op, stream);
}

void run(const EmbeddingGrad& op, Stream& stream) {
  const Operands operands("embedding_grad", stream);
  operands.rank("ids", op.ids, 2);
  operands.is("ids", op.ids, op.ids.shape(), DType::i32);
  operands.rank("dtable", op.dtable, 2);
  operands.is("dtable", op.dtable, op.dtable.shape(), DType::f32);
  operands.is_storage("dy", op.dy, {op.ids.dim(0), op.ids.dim(1), op.dtable.dim(1)});
  dispatch(op, stream);
}

}  // namespace mamba
