// SsdGrad: what is known of each step alone; states and adjoints from chunk to chunk; the chunks,
// each for itself; and the sums over heads, chunks and rows, in a fixed order.
#include "kernels/ssd_grad/ssd_grad.hpp"

#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/column_sums.cuh"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/ssd_grad/plain_chunk.cuh"

namespace mamba::cuda {

SsdGradOperands::SsdGradOperands(const SsdGrad& op)
    : batch(op.x.dim(0)),
      time(op.x.dim(1)),
      kept_steps(op.chunk_steps),
      kept(divide_up(time, kept_steps)),
      per_kept(static_cast<int>(divide_up(kept_steps, ssd_chunk))),
      heads(static_cast<int>(op.A_log.dim(0))),
      head_dim(static_cast<int>(op.x.dim(2) / heads)),
      groups(static_cast<int>(op.groups)),
      d_state(static_cast<int>(op.B.dim(2) / op.groups)),
      head_blocks(static_cast<int>(divide_up(heads / groups, ssd_most_heads))),
      x(op.x),
      dt(op.dt),
      B(op.B),
      C(op.C),
      dy(op.dy),
      dx(op.dx),
      ddt(op.ddt),
      dB(op.dB),
      dC(op.dC),
      A_log(op.A_log.data<float>()),
      D(op.D ? op.D.data<float>() : nullptr),
      dt_bias(op.dt_bias ? op.dt_bias.data<float>() : nullptr),
      reset(op.reset ? op.reset.data<std::int32_t>() : nullptr),
      reset_pitch(op.reset ? op.reset.row_pitch() : 0),
      softplus(op.softplus),
      dt_low(op.dt_low),
      dt_high(op.dt_high),
      chunk_states(op.chunk_states.data<float>()),
      dfinal(op.dfinal_state ? op.dfinal_state.data<float>() : nullptr),
      dinitial(op.dinitial_state ? op.dinitial_state.data<float>() : nullptr) {
  chunks =
      kept == 0 ? 0 : (kept - 1) * per_kept + divide_up(time - (kept - 1) * kept_steps, ssd_chunk);
}

namespace {

constexpr const char* where = "ssd_grad";

unsigned blocks(std::int64_t count) { return static_cast<unsigned>(count); }

// dB and dC, V elements a thread, of one step.
template <class T, int V>
__global__ void __launch_bounds__(256)
    ssd_grad_add_kernel(const __grid_constant__ SsdGradOperands op) {
  const std::int64_t width = std::int64_t{op.groups} * op.d_state;
  const std::int64_t all = op.rows * op.time * width;
  const std::int64_t at = (std::int64_t{blockIdx.x} * 256 + threadIdx.x) * V;
  if (at >= 2 * all) return;
  const bool is_dC = at >= all;
  const std::int64_t element = is_dC ? at - all : at;
  const float* from = op.dBC + (is_dC ? op.head_blocks * all : 0) + element;
  float sums[V] = {};
#pragma unroll 4
  for (int block = 0; block < op.head_blocks; ++block) {
    float terms[V];
    load_floats<V>(from + block * all, terms);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] += terms[v];
  }
  const std::int64_t step = element / width, row = step / op.time;
  const std::int64_t b = op.first_row + row, t = step - row * op.time;
  T* to = (is_dC ? op.dC : op.dB).template out<T>(b, t) + (element - step * width);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = from_float<T>(sums[v]);
}

// Enough blocks for the chip, and none with more heads than it has room for.
int head_blocks(const SsdGradOperands& op, std::int64_t rows, int most_heads, Device device) {
  const int most = op.heads / op.groups;
  const std::int64_t each = std::max<std::int64_t>(rows * op.chunks * op.groups, 1);
  const std::int64_t wanted = divide_up(4 * multiprocessors(device, where), each);
  return static_cast<int>(std::clamp<std::int64_t>(wanted, divide_up(most, most_heads), most));
}

template <class T>
void run_plain_rows(const SsdGradOperands& op, Stream& stream) {
  const std::int64_t tiles = divide_up(op.head_dim, 64) * divide_up(op.d_state, 64);
  launch(ssd_grad_plain_walk_kernel<T>, blocks((1 + op.kept) * op.rows * op.heads * tiles),
         plain_threads, 0, stream, where, op, static_cast<int>(tiles));
  if (op.chunks == 0) return;
  const auto most = static_cast<int>(divide_up(op.heads / op.groups, op.head_blocks));
  launch(ssd_grad_plain_chunk_kernel<T>, blocks(op.rows * op.chunks * op.groups * op.head_blocks),
         plain_threads, static_cast<std::size_t>(PlainChunk<T>::shared_bytes(most)), stream, where,
         op);
}

template <class T>
void run_rows(SsdGradOperands op, SsdGradPlan plan, Stream& stream) {
  Scratch scratch(stream);
  const auto floats = [&](std::int64_t count) {
    return scratch.take({count}, DType::f32).template data<float>();
  };
  const std::int64_t of_chunks = op.rows * op.chunks;
  const std::int64_t state = std::int64_t{op.heads} * op.head_dim * op.d_state;
  const std::int64_t dBC = op.rows * op.time * op.groups * op.d_state;
  op.steps = floats(of_chunks * op.heads * SsdGradSteps::floats);
  op.parted = scratch.take({of_chunks}, DType::i32).data<std::int32_t>();
  if (plan == SsdGradPlan::mma) {
    op.states = scratch.take({of_chunks * state}, DType::bf16).data();
    op.adjoints = scratch.take({of_chunks * state}, DType::bf16).data();
  } else {
    op.states = floats(op.rows * (op.chunks - op.kept) * state);
    op.adjoints = floats(of_chunks * state);
  }
  op.dBC = op.head_blocks == 1 ? nullptr : floats(2 * op.head_blocks * dBC);
  if (op.chunks > 0) {
    launch(ssd_grad_steps_kernel<T>, blocks(divide_up(of_chunks * op.heads, ssd_steps_warps)),
           32 * ssd_steps_warps, 0, stream, where, op);
  }
  if (plan == SsdGradPlan::mma) {
    run_mma_rows(op, stream);
  } else {
    run_plain_rows<T>(op, stream);
  }
  if (op.dBC == nullptr || dBC == 0) return;
  if (op.groups * op.d_state % 4 == 0) {
    launch(ssd_grad_add_kernel<T, 4>, blocks(divide_up(dBC / 2, 256)), 256, 0, stream, where, op);
  } else {
    launch(ssd_grad_add_kernel<T, 1>, blocks(divide_up(2 * dBC, 256)), 256, 0, stream, where, op);
  }
}

}  // namespace

bool can_run(const SsdGrad& op, SsdGradPlan plan, const Limits& device) {
  if (plan == SsdGradPlan::plain) return true;
  const std::int64_t head_dim = op.x.dim(2) / op.A_log.dim(0), d_state = op.B.dim(2) / op.groups;
  const auto in_pairs = [](const ConstTensorView& view) {
    return !view || is_aligned(view.data(), 0, sizeof(float2));
  };
  return op.x.dtype() == DType::bf16 && head_dim <= 64 && head_dim % 8 == 0 && d_state <= 128 &&
         d_state % 8 == 0 && are_wide({op.x, op.B, op.C, op.dy, op.dx}) &&
         in_pairs(op.chunk_states) && in_pairs(op.dfinal_state) && in_pairs(op.dinitial_state) &&
         MmaRoom(device.shared_memory).heads > 0;
}

SsdGradPlan plan(const SsdGrad& op, const Limits& device) {
  return can_run(op, SsdGradPlan::mma, device) ? SsdGradPlan::mma : SsdGradPlan::plain;
}

void run_ssd_grad(const SsdGrad& op, Stream& stream, SsdGradPlan plan, std::int64_t scratch_bytes) {
  const OnDevice current(stream.device(), where);
  const Limits device = limits(stream.device(), where);
  if (!can_run(op, plan, device)) {
    throw ArgumentError(where, "plan", "one that can do this", "mma");
  }
  const bool mma = plan == SsdGradPlan::mma;
  SsdGradOperands operands(op);
  const std::int64_t row_bytes =
      2 * operands.chunks * op.x.dim(2) * operands.d_state * (mma ? 2 : 4);
  // Slabs of equal size, as far as rows allow.
  const std::int64_t batch = std::max<std::int64_t>(operands.batch, 1);
  const std::int64_t slabs = std::clamp<std::int64_t>(
      divide_up(batch * row_bytes, std::max<std::int64_t>(scratch_bytes, 1)), 1, batch);
  const std::int64_t rows = divide_up(batch, slabs);
  const MmaRoom room(device.shared_memory);
  operands.buffers = room.buffers;
  const int most_heads = mma ? room.heads : ssd_most_heads;
  operands.head_blocks = head_blocks(operands, rows, most_heads, stream.device());
  Scratch scratch(stream);
  const std::int64_t parts = operands.batch * operands.chunks;
  operands.sums = scratch.take({parts, 3, operands.heads}, DType::f32).data<float>();
  for (std::int64_t first = 0; first < operands.batch; first += rows) {
    operands.first_row = first;
    operands.rows = std::min(rows, operands.batch - first);
    detail::visit(op.x.dtype(), [&](auto type) {
      run_rows<typename decltype(type)::type>(operands, plan, stream);
    });
  }
  const auto data = [](const TensorView& view) { return view ? view.data<float>() : nullptr; };
  sum_parts(
      operands.sums, parts, 3 * std::int64_t{operands.heads},
      PutRows<3>{{data(op.dA_log), data(op.dD), data(op.ddt_bias)}, operands.heads, op.accumulate},
      stream, where);
}

void run(const SsdGrad& op, Stream& stream) {
  run_ssd_grad(op, stream, plan(op, limits(stream.device(), where)));
}

}  // namespace mamba::cuda
