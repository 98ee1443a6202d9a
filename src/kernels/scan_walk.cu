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

constexpr int workers_at_most = 256;

struct ScanLaunch {
  ScanCut cut;
  int threads = 0;
  int shared = 0;

  // `steps` of a tile; `pipeline`: two buffers for everything, and some warps beside the others.
  ScanLaunch(const SelectiveScan& op, const ScanGeometry& geometry, const ScanChunks& chunks,
             int steps, int width, bool pipeline, bool summary) {
    const auto size = static_cast<int>(size_of(op.x.dtype()));
    const std::int64_t channels = op.x.dim(2);
    const int pitch = steps + 4;
    const int buffers = pipeline ? 2 : 1;
    cut.lanes = lanes_of(op.A_log.dim(1), geometry.states);
    cut.padded_states = cut.lanes * geometry.states;
    const int fits = std::max(std::min(width, workers_at_most / cut.lanes), 1);
    cut.channels =
        static_cast<int>(std::min<std::int64_t>(std::min(geometry.channels, fits), channels));
    cut.channel_blocks = static_cast<int>((channels + cut.channels - 1) / cut.channels);
    const auto workers = static_cast<int>(round_up(cut.channels * cut.lanes, 32));
    cut.helper_begin = pipeline ? workers : 0;
    cut.helpers = pipeline ? 32 * std::clamp(geometry.helpers, 1, 8) : workers;
    threads = pipeline ? workers + cut.helpers : workers;
    cut.granule = copy_granule_of({&op.x, &op.dt, &op.z},
                                  cut.channel_blocks == 1 ? 16 : std::int64_t{cut.channels});
    cut.granule_BC = copy_granule_of({&op.B, &op.C}, 16);
    cut.row_bytes = static_cast<int>(round_up(cut.channels * size, 16));
    cut.row_bytes_BC = static_cast<int>(round_up(cut.padded_states * size, 16));
    cut.y_pitch = cut.lanes * pitch;
    if (cut.y_pitch / 4 % 2 == 0) cut.y_pitch += 4;  // odd: neighbouring channels in other banks
    cut.stage = steps * (3 * width * size + 2 * cut.row_bytes_BC + 4);
    cut.prepared = (pipeline ? pipeline_stages : 2) * cut.stage;
    cut.prepared_bytes = 4 * (2 * cut.channels + 2 * cut.padded_states) * pitch + 16;
    cut.parts = cut.prepared + buffers * cut.prepared_bytes;
    cut.parts_bytes = summary ? 0 : 4 * cut.channels * cut.y_pitch;
    shared = cut.parts + buffers * cut.parts_bytes;
    cut.chunk = chunks.length;
    cut.chunks = chunks.count;
    cut.launched_chunks = static_cast<int>(summary ? chunks.count - 1 : chunks.count);
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
template <class T, int States, int Steps, int Width, bool Pipeline, bool FewLanes, bool Summary>
void walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
          const ScanChunks& chunks) {
  const ScanLaunch launch(op, geometry, chunks, Steps, Width, Pipeline, Summary);
  launch_scan(scan_kernel<T, States, Steps, Width, Pipeline, FewLanes, Summary>, launch, op, stream);
}

template <class T>
void walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
          const ScanChunks& chunks, bool summary) {
  const bool many_lanes = lanes_of(op.A_log.dim(1), geometry.states) > few_lanes;
  if (summary) {
    many_lanes ? walk<T, 4, 8, 32, false, false, true>(op, stream, geometry, chunks)
               : walk<T, 4, 32, 32, false, true, true>(op, stream, geometry, chunks);
  } else if (geometry.helpers > 0) {
    geometry.states == 2 ? walk<T, 2, 32, 32, true, false, false>(op, stream, geometry, chunks)
                         : walk<T, 4, 32, 32, true, false, false>(op, stream, geometry, chunks);
  } else if (many_lanes) {
    walk<T, 4, 8, 32, false, false, false>(op, stream, geometry, chunks);
  } else {
    geometry.states == 8 ? walk<T, 8, 16, 64, false, true, false>(op, stream, geometry, chunks)
                         : walk<T, 4, 32, 32, false, true, false>(op, stream, geometry, chunks);
  }
}

}  // namespace

void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
               const ScanChunks& chunks, bool summary) {
  detail::visit(op.x.dtype(), [&](auto type) {
    walk<typename decltype(type)::type>(op, stream, geometry, chunks, summary);
  });
}

}  // namespace mamba::cuda
