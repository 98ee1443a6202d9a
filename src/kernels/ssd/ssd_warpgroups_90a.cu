// Ssd by warpgroups (see ssd_warpgroups.cuh): how it is cut, and its launches. Compiled for 9.0a
// alone.
#include <algorithm>

#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/tensor_map.cuh"
#include "kernels/scan/scan_operands.cuh"
#include "kernels/ssd/ssd_absent.cuh"
#include "kernels/ssd/ssd_launch.hpp"
#include "kernels/ssd/ssd_warpgroups.cuh"

namespace mamba::cuda {

namespace {

extern __shared__ __align__(1024) char ssd_warpgroup_memory[];

// The parts of a block; those that have channels do with_channels().
template <class Block, class F>
__device__ __forceinline__ void run_block(Block& block, F with_channels) {
  __syncthreads();
  if (block.brings()) {
    give_registers<Block::few>();
    block.bring();
  } else if (block.mixes()) {
    give_registers<Block::some>();
    block.mix();
  } else {
    take_registers<Block::many>();
    if (block.has_channels()) with_channels();
  }
}

template <int N, int XBytes>
__global__ void __launch_bounds__(SsdWarpgroups<N, XBytes, false>::threads, 1)
    warpgroups_kernel(const __grid_constant__ SsdOperands op,
                      const __grid_constant__ SsdWarpgroupCut cut,
                      const __grid_constant__ SsdMaps maps, const SsdSegments segments) {
  if constexpr (compiled_for_90a) {
    SsdWarpgroups<N, XBytes, false> block(op, cut, maps, ssd_warpgroup_memory);
    if (block.warpgroups() <= 0) return;
    const StateRow<> rows = op.rows(block.b);
    if (rows.is_absent()) {
      if (block.segment == 0) block.fill(rows);
      return;
    }
    run_block(block, [&] {
      const bool segmented = segments.states != nullptr;
      const float* from = segmented ? segments.states : op.initial;
      const std::int64_t row =
          segmented ? std::int64_t{block.b} * cut.segments + block.segment : rows.read;
      block.clear_state();
      if (from != nullptr && row >= 0) block.load_state(from, row);
      if (op.time > 0) block.walk();
      const bool last = block.segment + 1 == cut.segments;
      if (last && op.final_state != nullptr && rows.write >= 0) {
        block.keep_state(op.final_state, rows.write);
      }
    });
  }
}

// Of every segment but the last.
template <int N, int XBytes>
__global__ void __launch_bounds__(SsdWarpgroups<N, XBytes, true>::threads, 1)
    warpgroup_summaries_kernel(const __grid_constant__ SsdOperands op,
                               const __grid_constant__ SsdWarpgroupCut cut,
                               const __grid_constant__ SsdMaps maps, const SsdSegments segments) {
  if constexpr (compiled_for_90a) {
    SsdWarpgroups<N, XBytes, true> block(op, cut, maps, ssd_warpgroup_memory);
    if (block.warpgroups() <= 0) return;
    if (block.segment == cut.segments - 1 || op.rows(block.b).is_absent()) return;
    run_block(block, [&] {
      block.clear_state();
      const float decay = block.walk();
      const std::int64_t row = std::int64_t{block.b} * cut.segments + block.segment;
      block.keep_state(segments.states, row);
      if (block.works && block.p0 == 0 && threadIdx.x % 32 == 0) {
        segments.decays[row * op.heads + block.head] = decay;
      }
    });
  }
}

// How many heads a block of so many warps may meet.
int most_heads(int warps, int of_head) {
  if (of_head % warps == 0) return 1;
  if (warps % of_head == 0) return warps / of_head;
  return (warps + of_head - 2) / of_head + 1;
}

template <int N, int XBytes>
struct Kernels {
  using Main = SsdWarpgroups<N, XBytes, false>;

  static SsdWarpgroupCut cut_of(const Ssd& op, const SsdGeometry& geometry) {
    const auto heads = static_cast<int>(op.A_log.dim(0) / op.groups);
    SsdWarpgroupCut cut{};
    cut.of_head = static_cast<int>(op.x.dim(2) / op.A_log.dim(0)) / ssd_warp_channels;
    const int all = (heads * cut.of_head + 3) / 4;
    cut.warpgroups = std::clamp(geometry.heads, 1, std::min(Main::most, all));
    cut.heads = std::min(heads, most_heads(4 * cut.warpgroups, cut.of_head));
    cut.blocks = (all + cut.warpgroups - 1) / cut.warpgroups;
    cut_segments(op, geometry.segments, cut);
    const std::int64_t blocks = op.x.dim(0) * cut.segments * op.groups * cut.blocks;
    cut.whole = static_cast<int>(std::max<std::int64_t>(blocks - geometry.divided, 0));
    return cut;
  }
  static int bytes(const Ssd& op, const SsdGeometry& geometry) {
    const SsdWarpgroupCut cut = cut_of(op, geometry);
    return Main::bytes(cut.warpgroups, cut.heads);
  }
  static SsdBlocks blocks(const Ssd& op, const SsdGeometry& geometry) {
    const SsdWarpgroupCut cut = cut_of(op, geometry);
    return {op.x.dim(0) * op.groups * cut.blocks, 4 * cut.warpgroups, 1};
  }
  static void run(const Ssd& op, Stream& stream, const SsdGeometry& geometry) {
    const SsdWarpgroupCut cut = cut_of(op, geometry);
    const SsdOperands operands(op, stream);
    const std::int64_t blocks = operands.batch * cut.segments * op.groups * cut.blocks;
    const auto grid = static_cast<unsigned>(cut.whole + (blocks - cut.whole) * cut.warpgroups);
    const auto threads = static_cast<unsigned>(128 * (cut.warpgroups + 2));
    SsdMaps maps{};
    if (operands.time > 0) {
      maps = {tensor_map(op.x, Main::columns, ssd_chunk, "ssd"),
              tensor_map(op.B, 64, ssd_chunk, "ssd"), tensor_map(op.C, 64, ssd_chunk, "ssd"),
              tensor_map(op.y, ssd_warp_channels, ssd_chunk, "ssd")};
    }
    Scratch scratch(stream);
    SsdSegments segments{};
    if (cut.segments > 1) {
      const std::int64_t rows = operands.batch * cut.segments;
      segments.states = scratch.take({rows, op.x.dim(2) * N}, DType::f32).data<float>();
      segments.decays = scratch.take({rows, operands.heads}, DType::f32).data<float>();
      const int shared = SsdWarpgroups<N, XBytes, true>::bytes(cut.warpgroups, cut.heads);
      launch(warpgroup_summaries_kernel<N, XBytes>, grid, threads, static_cast<std::size_t>(shared),
             stream, "ssd", operands, cut, maps, segments);
      join_segments(operands, cut.segments, segments, stream);
    }
    launch(warpgroups_kernel<N, XBytes>, grid, threads,
           static_cast<std::size_t>(Main::bytes(cut.warpgroups, cut.heads)), stream, "ssd",
           operands, cut, maps, segments);
  }
};

// f(Kernels) of the sizes.
template <class F>
auto with_kernels(const Ssd& op, F f) {
  const bool whole = op.x.dim(2) / op.A_log.dim(0) % 64 == 0;  // no warpgroup meets two heads
  return with_ssd_states(op.B.dim(2) / op.groups, [&](auto states) {
    constexpr int N = decltype(states)::value;
    return whole ? f(Kernels<N, 128>()) : f(Kernels<N, 32>());
  });
}

}  // namespace

// More than four heads of a block would have no room, and the copy engine has its own limits:
// 32-bit coordinates, pitches of 1 to 2^40 bytes.
bool ssd_warpgroups_know(const Ssd& op) {
  const auto copied = [](const ConstTensorView& view) {
    const auto fits = [](std::int64_t pitch) { return pitch > 0 && pitch < std::int64_t{1} << 39; };
    return view.dim(1) < std::int64_t{1} << 31 && (view.dim(0) < 2 || fits(view.row_pitch())) &&
           (view.dim(1) < 2 || fits(view.step_pitch()));
  };
  return op.x.dim(2) / op.A_log.dim(0) >= 32 && copied(op.x) && copied(op.B) && copied(op.C) &&
         copied(op.y);
}
int ssd_warpgroups_bytes(const Ssd& op, const SsdGeometry& geometry) {
  return with_kernels(op, [&](auto kernels) { return kernels.bytes(op, geometry); });
}
SsdBlocks ssd_warpgroup_blocks(const Ssd& op, const SsdGeometry& geometry) {
  return with_kernels(op, [&](auto kernels) { return kernels.blocks(op, geometry); });
}
void ssd_warpgroups(const Ssd& op, Stream& stream, const SsdGeometry& geometry) {
  with_kernels(op, [&](auto kernels) { kernels.run(op, stream, geometry); });
}

}  // namespace mamba::cuda
