// Ssd by chunks on the tensor cores (see ssd_chunks.cuh): how it is cut, and its launches.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/scan/scan_operands.cuh"
#include "kernels/ssd/ssd_absent.cuh"
#include "kernels/ssd/ssd_chunks.cuh"
#include "kernels/ssd/ssd_launch.hpp"

namespace mamba::cuda {

namespace {

extern __shared__ __align__(16) char ssd_memory[];

// Blocks of a multiprocessor, for the registers they get. Before 9.0 there is shared memory for one
// with 128 states.
template <int N>
constexpr int together = N == 64 || (N == 128 && compiled_for >= sm_90) ? 2 : 1;

template <class T, int N>
__global__ void __launch_bounds__(32 * ssd_most_warps, together<N>)
    chunks_kernel(const __grid_constant__ SsdOperands op, const __grid_constant__ SsdChunkCut cut,
                  const __grid_constant__ SsdLayout<N, false> layout, const SsdSegments segments) {
  SsdChunks<T, N, false> block(op, cut, layout, ssd_memory);
  const SsdPlace place = block.place();
  const StateRow<> rows = op.rows(place.b);
  if (rows.is_absent()) {
    if (place.segment != 0) return;
    for (int h = 0; h < place.heads; ++h) {
      fill_absent<T>(op, rows, place.b, place.head0 + h, block.first_p(), block.channels());
    }
    return;
  }
  const bool segmented = segments.states != nullptr;
  const float* from = segmented ? segments.states : op.initial;
  const std::int64_t row =
      segmented ? std::int64_t{place.b} * cut.segments + place.segment : rows.read;
  block.clear_state();
  if (block.works && from != nullptr && row >= 0) block.load_state(from, row);
  if (op.time > 0) block.walk();
  if (block.place().segment + 1 != cut.segments || !block.works || op.final_state == nullptr)
    return;
  const std::int64_t write =
      op.rows(block.place().b).write;  // read again, for it took two registers
  if (write >= 0) block.keep_state(op.final_state, write);
}

// Of every segment but the last.
template <class T, int N>
__global__ void __launch_bounds__(32 * ssd_most_warps, together<N>)
    summaries_kernel(const __grid_constant__ SsdOperands op,
                     const __grid_constant__ SsdChunkCut cut,
                     const __grid_constant__ SsdLayout<N, true> layout,
                     const SsdSegments segments) {
  SsdChunks<T, N, true> block(op, cut, layout, ssd_memory);
  const SsdPlace place = block.place();
  if (place.segment == cut.segments - 1 || op.rows(place.b).is_absent()) return;
  block.clear_state();
  const float decay = block.summarize();
  if (!block.works) return;
  const std::int64_t row = std::int64_t{place.b} * cut.segments + place.segment;
  block.keep_state(segments.states, row);
  if (block.p == 0 && lane_id() == 0) {
    segments.decays[row * op.heads + block.global_head()] = decay;
  }
}

template <class T, int N>
void chunks(const Ssd& op, Stream& stream, const SsdChunkCut& cut) {
  const SsdOperands operands(op, stream);
  const std::int64_t blocks = operands.batch * cut.segments * op.groups * cut.blocks * cut.parts;
  const auto grid = static_cast<unsigned>(blocks),
             threads = static_cast<unsigned>(32 * cut.warps());
  Scratch scratch(stream);
  SsdSegments segments{};
  if (cut.segments > 1) {
    const std::int64_t rows = operands.batch * cut.segments, state = op.x.dim(2) * operands.d_state;
    segments.states = scratch.take({rows, state}, DType::f32).data<float>();
    segments.decays = scratch.take({rows, operands.heads}, DType::f32).data<float>();
    const SsdLayout<N, true> layout(cut);
    launch(summaries_kernel<T, N>, grid, threads, static_cast<std::size_t>(layout.bytes), stream,
           "ssd", operands, cut, layout, segments);
    join_segments(operands, cut.segments, segments, stream);
  }
  const SsdLayout<N, false> layout(cut);
  launch(chunks_kernel<T, N>, grid, threads, static_cast<std::size_t>(layout.bytes), stream, "ssd",
         operands, cut, layout, segments);
}

SsdChunkCut cut_of(const Ssd& op, const SsdGeometry& geometry) {
  const auto heads = static_cast<int>(op.A_log.dim(0) / op.groups);
  const auto slices = static_cast<int>(op.x.dim(2) / op.A_log.dim(0) / ssd_slice);
  SsdChunkCut cut{};
  cut.parts = (slices + ssd_most_warps - 1) / ssd_most_warps;
  cut.slices = (slices + cut.parts - 1) / cut.parts;
  cut.heads = std::clamp(geometry.heads, 1, std::min(heads, ssd_most_warps / cut.slices));
  cut.blocks = (heads + cut.heads - 1) / cut.heads;
  cut_segments(op, geometry.segments, cut);
  return cut;
}

}  // namespace

int ssd_chunks_bytes(const Ssd& op, const SsdGeometry& geometry) {
  return with_ssd_states(op.B.dim(2) / op.groups, [&](auto states) {
    return SsdLayout<decltype(states)::value, false>(cut_of(op, geometry)).bytes;
  });
}

// Two at most, for the registers they need.
SsdBlocks ssd_chunk_blocks(const Ssd& op, const SsdGeometry& geometry, const Limits& device) {
  constexpr int beside = 1 << 10;  // bytes that the system takes for each block
  const SsdChunkCut cut = cut_of(op, geometry);
  const int bytes = ssd_chunks_bytes(op, geometry) + beside;
  const bool two = op.B.dim(2) / op.groups <= 128 && 2 * bytes <= device.shared_memory + beside;
  return {op.x.dim(0) * op.groups * cut.blocks * cut.parts, cut.warps(), two ? 2 : 1};
}

// Not f16: M and S have no bounds that its range could be scaled to.
bool can_chunk(const Ssd& op) {
  const std::int64_t d_state = op.B.dim(2) / op.groups, head_dim = op.x.dim(2) / op.A_log.dim(0);
  const auto pairs = [](const ConstTensorView& view) {
    return !view || is_aligned(view.data(), 0, 16);
  };
  return op.x.dtype() == DType::bf16 && ssd_knows_states(d_state) && head_dim % ssd_slice == 0 &&
         !op.step_states && (!op.chunk_states || op.chunk_steps % ssd_chunk == 0) &&
         are_wide({op.x, op.y, op.B, op.C}) && pairs(op.initial_state) && pairs(op.final_state) &&
         pairs(op.chunk_states);
}

void ssd_chunks(const Ssd& op, Stream& stream, const SsdGeometry& geometry) {
  const SsdChunkCut cut = cut_of(op, geometry);
  with_ssd_states(op.B.dim(2) / op.groups,
                  [&](auto states) { chunks<bf16, decltype(states)::value>(op, stream, cut); });
}

}  // namespace mamba::cuda
