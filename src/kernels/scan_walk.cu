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

  template <class T, int States, int Steps, int Width, bool FewLanes>
  ScanLaunch(const SelectiveScan& op, int channels_wanted, const ScanChunks& chunks, ScanPass pass,
             const ScanBlock<T, States, Steps, Width, FewLanes>*) {
    using Block = ScanBlock<T, States, Steps, Width, FewLanes>;
    constexpr int size = Block::element;
    const std::int64_t channels = op.x.dim(2);
    cut.lanes = lanes_of(op.A_log.dim(1), States);
    cut.padded_states = cut.lanes * States;
    const int multiple = std::max(32 / cut.lanes, 2);
    const int most = std::max(std::min(Width, 256 / cut.lanes), multiple);
    cut.channels = static_cast<int>(
        std::min<std::int64_t>(round_up(std::min<std::int64_t>(channels_wanted, channels), multiple),
                               most));
    cut.channel_blocks = static_cast<int>((channels + cut.channels - 1) / cut.channels);
    threads = cut.channels * cut.lanes;
    cut.granule = copy_granule_of({&op.x, &op.dt, &op.z},
                                  cut.channel_blocks == 1 ? 16 : std::int64_t{cut.channels});
    cut.granule_BC = copy_granule_of({&op.B, &op.C}, 16);
    cut.paired_y = copy_granule_of({&op.y}, 16) >= 2 * size;
    cut.row_bytes = static_cast<int>(round_up(cut.channels * size, 16));
    cut.row_bytes_BC = static_cast<int>(round_up(cut.padded_states * size, 16));
    cut.stage = 3 * Block::raw_bytes + Steps * (2 * cut.row_bytes_BC + 4);
    cut.prepared = 2 * cut.stage + static_cast<int>(round_up(4 * 2 * cut.channels, 16));
    shared = cut.prepared + 4 * 2 * (cut.channels * Block::pitch + cut.lanes * Block::lane_pitch) + 16;
    cut.part_channel = Block::pitch;
    cut.part_lane = cut.channels * Block::pitch;
    cut.parts = cut.prepared;
    if (cut.lanes > 2) {
      cut.part_lane = Block::pitch;
      cut.part_channel = cut.lanes * Block::pitch;
      if (cut.part_channel / 4 % 2 == 0) cut.part_channel += 4;  // odd: neighbours in other banks
      cut.parts = shared;
      shared += 4 * cut.channels * cut.part_channel;
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
template <class T, int States, int Steps, int Width, bool FewLanes>
void walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
          const ScanChunks& chunks, ScanPass pass) {
  constexpr const ScanBlock<T, States, Steps, Width, FewLanes>* kind = nullptr;
  const ScanLaunch launch(op, geometry.channels, chunks, pass, kind);
  launch_scan(pass == ScanPass::first ? scan_kernel<T, States, Steps, Width, FewLanes, true>
                                      : scan_kernel<T, States, Steps, Width, FewLanes, false>,
              launch, op, stream);
}

}  // namespace

void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
               const ScanChunks& chunks, ScanPass pass) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int steps = sizeof(T) == 2 ? 32 : 16;  // as many as leave room for five blocks
    if (lanes_of(op.A_log.dim(1), geometry.states) > few_lanes) {
      walk<T, 4, 8, 32, false>(op, stream, geometry, chunks, pass);
    } else if (geometry.states == 8) {
      walk<T, 8, steps, 64, true>(op, stream, geometry, chunks, pass);
    } else {
      walk<T, 4, steps, 32, true>(op, stream, geometry, chunks, pass);
    }
  });
}

}  // namespace mamba::cuda
