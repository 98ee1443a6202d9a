// Launches of the kernel that walks time.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/cuda.cuh"
#include "kernels/scan_launch.hpp"
#include "kernels/scan_sequence.cuh"

namespace mamba::cuda {

namespace {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Bytes of the widest copies for which every row of these views is aligned, when blocks begin at
// multiples of `block` elements.
int copy_granule_of(std::initializer_list<const ConstTensorView*> views, std::int64_t block) {
  const std::int64_t size = size_of((*views.begin())->dtype());
  for (const int bytes : {16, 8, 4}) {
    const bool fits = std::all_of(views.begin(), views.end(), [&](const ConstTensorView* view) {
      return !*view || (is_aligned(view->data(), view->row_pitch() * size, bytes) &&
                        view->step_pitch() * size % bytes == 0 && block * size % bytes == 0);
    });
    if (fits) return bytes;
  }
  return static_cast<int>(size);
}

int lanes_of(std::int64_t d_state, int states) {
  int lanes = 1;
  while (lanes * states < d_state) lanes *= 2;
  return lanes;
}

struct ScanLaunch {
  ScanCut cut;
  int threads = 0;
  int shared = 0;

  template <class Block>
  ScanLaunch(const SelectiveScan& op, const ScanChunks& chunks, ScanPass pass, int states,
             const Block*) {
    constexpr int size = Block::element;
    cut.lanes = lanes_of(op.A_log.dim(1), states);
    cut.padded_states = cut.lanes * states;
    cut.channel_blocks = static_cast<int>((op.x.dim(2) + Block::channels - 1) / Block::channels);
    threads = Block::channels * cut.lanes;
    cut.granule = copy_granule_of({&op.x, &op.dt, &op.z}, Block::channels);
    cut.granule_BC = copy_granule_of({&op.B, &op.C}, 16);
    cut.paired_y = copy_granule_of({&op.y}, Block::channels) >= 2 * size;
    cut.row_bytes_BC = static_cast<int>(round_up(cut.padded_states * size, 16));
    cut.stage = 3 * Block::raw_bytes + (Block::pitch - 4) * (2 * cut.row_bytes_BC + 4);
    cut.sources = Block::front_bytes + 2 * cut.stage;
    cut.prepared = cut.sources + 3 * 8 * threads;
    shared = cut.prepared + 16 +
             4 * 2 * (Block::channels * Block::pitch + cut.lanes * Block::lane_pitch);
    cut.part_channel = Block::pitch;
    cut.part_lane = Block::channels * Block::pitch;
    cut.parts = cut.prepared;
    if (cut.lanes > 2) {
      cut.part_lane = Block::pitch;
      cut.part_channel = cut.lanes * Block::pitch;
      if (cut.part_channel / 4 % 2 == 0) cut.part_channel += 4;  // odd: neighbours in other banks
      cut.parts = shared;
      shared += 4 * Block::channels * cut.part_channel;
    }
    cut.chunk = chunks.length;
    cut.chunks = chunks.count;
    cut.first_chunk = pass == ScanPass::second ? 1 : 0;
    cut.launched_chunks = static_cast<int>(pass == ScanPass::whole ? 1 : chunks.count - 1);
    cut.entries = chunks.entries;
    cut.sums = chunks.sums;
  }
};

template <class Kernel>
void launch_scan(Kernel kernel, const ScanLaunch& launch, const SelectiveScan& op, Stream& stream) {
  const std::int64_t blocks = op.x.dim(0) * launch.cut.launched_chunks * launch.cut.channel_blocks;
  if (launch.shared > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared),
          "selective_scan");
  }
  kernel<<<static_cast<unsigned>(blocks), launch.threads, launch.shared, handle(stream)>>>(
      ScanOperands(op, stream), launch.cut);
  check(cudaGetLastError(), "selective_scan");
}

// Which of the kernels: what a thread holds, the steps of a tile, the channels of a block.
template <class T, int States, int Steps, int Channels, bool FewLanes>
void walk(const SelectiveScan& op, Stream& stream, const ScanChunks& chunks, ScanPass pass) {
  constexpr const ScanBlock<T, States, Steps, Channels, FewLanes>* kind = nullptr;
  const ScanLaunch launch(op, chunks, pass, States, kind);
  launch_scan(pass == ScanPass::first ? scan_kernel<T, States, Steps, Channels, FewLanes, true>
                                      : scan_kernel<T, States, Steps, Channels, FewLanes, false>,
              launch, op, stream);
}

}  // namespace

void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
               const ScanChunks& chunks, ScanPass pass) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (lanes_of(op.A_log.dim(1), 4) > 32) {
      walk<T, 4, 8, 2, false>(op, stream, chunks, pass);
    } else if (lanes_of(op.A_log.dim(1), 4) > 8) {
      walk<T, 4, 8, 8, false>(op, stream, chunks, pass);
    } else if (geometry.states == 8 || lanes_of(op.A_log.dim(1), 4) > 4) {
      walk<T, 8, 16, 64, true>(op, stream, chunks, pass);
    } else {
      walk<T, 4, 32, 32, true>(op, stream, chunks, pass);
    }
  });
}

}  // namespace mamba::cuda
