// The selective scan on CUDA: which plan, cut how.
#include <algorithm>

#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/scan/scan_launch.hpp"
#include "kernels/scan/scan_operands.cuh"

namespace mamba::cuda {

namespace {

// Lanes of a channel in the sequential plan, with eight states a lane or four.
std::int64_t lanes_of(const SelectiveScan& op, int states) {
  std::int64_t lanes = 2;
  while (lanes * states < detail::d_state_of(op)) lanes *= 2;
  return lanes;
}

// Warps of the sequential plan for every scheduler of the device, of which a multiprocessor has
// four.
double warps_each(const SelectiveScan& op, int states, int sm_count) {
  return static_cast<double>(op.x.dim(0) * op.x.dim(2) * lanes_of(op, states)) /
         (32 * 4 * sm_count);
}

// How a ring may be cut: into warps of so many channels, in how many blocks at most on a
// multiprocessor, and what a channel costs there beside one of the widest (measured where an H200
// is full).
struct RingWidth {
  int channels, most_together;
  double cost;
};
constexpr RingWidth scan_widths[] = {{32, 2, 1.0}, {16, 2, 1.33}, {8, 2, 1.8}};
constexpr RingWidth grad_widths[] = {{32, 3, 1.0}, {16, 2, 1.22}};

// The least cost on the busiest multiprocessor, which has one block at a time or several with a
// share of the warps, if its shared memory allows (`blocks_together`; the first of equals is
// taken). For the gradient several short rings beat one long one, since the warps of a ring begin
// and end one after the other: at (8, 1536, 2048) three at a time take 708 us, one 746, and two,
// which leave more of the last round idle, 904.
template <class Op, std::size_t N>
ScanGeometry ring_geometry(const Op& op, const Limits& device, const RingWidth (&widths)[N],
                           std::initializer_list<int> blocks_together) {
  constexpr int beside = 1 << 10;  // bytes that the system takes for each block
  ScanGeometry g;
  double least = 0;
  for (const RingWidth& width : widths) {
    if (width.channels < 32 && detail::may_grow(op)) continue;  // see plan()
    const RingNeeds needs = ring_needs(op, width.channels, device);
    const std::int64_t blocks = op.x.dim(0) * divide_up(op.x.dim(2), width.channels);
    const std::int64_t steps = std::int64_t{32} / width.channels * scan_chunk;  // of a warp
    const std::int64_t tiles = std::max<std::int64_t>(1, divide_up(op.x.dim(1), steps));
    for (const int together : blocks_together) {
      if (together > width.most_together) continue;
      const auto fit = [&](int warps) {
        return together * (needs.bytes(warps) + beside) <= device.shared_memory + beside;
      };
      int warps = needs.most_warps / together;
      while (warps > 1 && !fit(warps)) --warps;
      if (together > 1 && !fit(warps)) continue;
      const std::int64_t rounds =
          divide_up(blocks, std::int64_t{together} * device.multiprocessors);
      double cost = static_cast<double>(rounds * together * width.channels) * width.cost;
      cost *= static_cast<double>(needs.most_warps) / (warps * together);
      warps = static_cast<int>(std::min<std::int64_t>(warps, tiles));
      // Warps of one chunk take turns, state by state (see scan_chunked.cu): with fewer states than
      // warps they wait for each other.
      const double turns = warps / static_cast<double>(detail::d_state_of(op));
      if (width.channels == 32) cost *= std::max(1.0, turns);
      if (least != 0 && cost >= least) continue;
      least = cost;
      g.channels = width.channels;
      g.warps = warps;
    }
  }
  return g;
}

}  // namespace

// States that may grow (A of any sign, or no softplus) take the chunked plan whatever the shape,
// but for a single step: asking how A and delta are made would cost a walk registers. And of the
// rings they take the one whose warps have one chunk of each channel. Where a warp has several, it
// joins them by the product of a chunk's decays, which may be infinite although no state is; times
// a state of zero that is a NaN. So a device that has no room for a block of the widest ring
// refuses so many states (one with 99 KiB and f32: more than 234, or 229 where it leaves states,
// and more than 166 in the gradient).
ScanPlan plan(const SelectiveScan& op, const Limits& device) {
  const std::int64_t time = op.x.dim(1);
  if (time == 1 && !op.chunk_states) return ScanPlan::step;
  constexpr std::int64_t longest = std::int64_t{1} << 30;  // steps that one block counts
  if (detail::may_grow(op) || time > longest || scan_walk_bytes(op) > device.shared_memory) {
    return ScanPlan::chunked;
  }
  // Measured on an H200: below 3 warps a scheduler, and with more than four lanes a channel, chunks
  // are faster, if the sequence is long enough: with 2.9 warps from 1100 steps on, with 1.5 from
  // 300.
  const bool wide = detail::d_state_of(op) > 32;
  const double warps = warps_each(op, 4, device.multiprocessors);
  const double long_enough = std::max(128.0, 128 * warps * warps);
  const bool few = warps < 3 && static_cast<double>(time) >= long_enough;
  return (wide && time >= 128) || few ? ScanPlan::chunked : ScanPlan::sequential;
}

ScanGeometry geometry(const SelectiveScanGrad& op, const Limits& device) {
  return ring_geometry(op, device, grad_widths, {3, 2, 1});
}

ScanGeometry geometry(const SelectiveScan& op, ScanPlan plan, const Limits& device) {
  if (plan == ScanPlan::chunked) return ring_geometry(op, device, scan_widths, {1, 2});
  ScanGeometry g;
  if (plan == ScanPlan::sequential) {
    // Two lanes a channel save work, four keep more warps busy. Where the chip is full, legs keep
    // its multiprocessors' youngest warps from ending alone.
    const bool full = warps_each(op, 8, device.multiprocessors) >= 4;
    g.states = full ? 8 : 4;
    if (full && op.x.dim(1) >= 1024) g.leg = 256;
  }
  return g;
}

void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan,
              const ScanGeometry& geometry) {
  if (plan == ScanPlan::step && op.x.dim(1) != 1) {
    throw ArgumentError("selective_scan", "plan", "time 1 for one step",
                        std::to_string(op.x.dim(1)));
  }
  if (plan == ScanPlan::sequential && detail::may_grow(op)) {
    throw ArgumentError("selective_scan", "plan", "A_log and softplus for a walk", "another form");
  }
  if (op.chunk_states && op.chunk_steps != scan_chunk) {
    throw ArgumentError("selective_scan", "chunk_steps", std::to_string(scan_chunk),
                        std::to_string(op.chunk_steps));
  }
  if (op.x.dim(0) == 0 || op.x.dim(2) == 0) return;
  const OnDevice current(stream.device(), "selective_scan");
  switch (plan) {
    case ScanPlan::step:
      return scan_step(op, stream);
    case ScanPlan::sequential:
      return scan_walk(op, stream, geometry);
    case ScanPlan::chunked:
      return scan_chunked(op, stream, geometry);
  }
}

// Every row reads all of the weight, as it reads dt, from L2: good up to so many bytes (64 rows of
// 130m, 9 MiB: 0.73 ms a token, 0.77 with a product of its own; 370m, 16 MiB: 1.70 and 1.73; 1.4b,
// 64 MiB: 3.40 and 2.96). With more than 64 rows the kernel that takes four at once is better.
bool projects_dt(const SelectiveScan& op) {
  constexpr std::int64_t good_bytes = std::int64_t{16} << 20;
  const std::int64_t rows = op.x.dim(0);
  return op.dt_weight.dtype() == op.dt.dtype() && op.x.dim(1) == 1 && !op.chunk_states &&
         rows <= 64 && rows * op.dt_weight.count() * size_of(op.dt_weight.dtype()) <= good_bytes;
}

std::int64_t scan_chunk_steps(const SelectiveScan&, const Stream&) { return scan_chunk; }

void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan) {
  run_scan(op, stream, plan, geometry(op, plan, limits(stream.device(), "selective_scan")));
}

void run(const SelectiveScan& op, Stream& stream) {
  const Limits device = limits(stream.device(), "selective_scan");
  const ScanPlan chosen = plan(op, device);
  run_scan(op, stream, chosen, geometry(op, chosen, device));
}

void run(const SelectiveScanGrad& op, Stream& stream) {
  run_scan_grad(op, stream, geometry(op, limits(stream.device(), "selective_scan_grad")));
}

}  // namespace mamba::cuda
