// The scan that is sequential in time (see scan_walk.cuh): how a channel's states are cut among
// lanes, and the launch.
#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/scan/scan_launch.hpp"
#include "kernels/scan/scan_walk.cuh"

namespace mamba::cuda {

namespace {

template <class T, int States, int Lanes, bool Plain>
__global__ void __launch_bounds__(walk_threads, Lanes == 2   ? 5
                                                : Lanes < 16 ? 4
                                                             : 2)
    walk_kernel(const __grid_constant__ ScanOperands op, const __grid_constant__ ScanRelay relay) {
  extern __shared__ __align__(16) char scan_memory[];
  using Memory = WalkMemory<T, States, Lanes>;
  const ScanLeg leg = relay.take(op.time);
  Walk<T, States, Lanes, Plain> walk(op, leg, *reinterpret_cast<Memory*>(scan_memory));
  walk.rows.is_absent() ? walk.absent() : walk.run(relay);
}

template <int States, int Lanes>
struct Cut {
  static constexpr int states = States, lanes = Lanes;
};

// f(Cut<states of a lane, lanes of a channel>). `states`: 4 or 8, for d_state 9 to 16.
template <class F>
auto with_cut(std::int64_t d_state, int states, F f) {
  if (d_state <= 8) return f(Cut<4, 2>());
  if (d_state <= 16) return states == 8 ? f(Cut<8, 2>()) : f(Cut<4, 4>());
  if (d_state <= 32) return f(Cut<8, 4>());
  if (d_state <= 64) return f(Cut<8, 8>());
  if (d_state <= 128) return f(Cut<8, 16>());
  return f(Cut<16, 16>());
}

// What Walk calls plain.
bool is_plain(const SelectiveScan& op) {
  return op.D && op.z && !op.reset && !op.step_states && are_wide({op.x, op.dt, op.z, op.y});
}

template <class T, int States, int Lanes>
void run_walk(const SelectiveScan& op, Stream& stream, std::int64_t leg) {
  using Memory = WalkMemory<T, States, Lanes>;
  Scratch scratch(stream);
  const ScanRelay relay(op.x.dim(0) * ((op.x.dim(2) + Memory::channels - 1) / Memory::channels),
                        leg, op, scratch, stream);
  const auto kernel =
      is_plain(op) ? walk_kernel<T, States, Lanes, true> : walk_kernel<T, States, Lanes, false>;
  launch(kernel, relay.blocks(), walk_threads, sizeof(Memory), stream, "selective_scan",
         ScanOperands(op, stream), relay);
}

}  // namespace

void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const std::int64_t leg = (geometry.leg + 31) / 32 * 32;  // whole tiles
    with_cut(detail::d_state_of(op), geometry.states, [&](auto cut) {
      using C = decltype(cut);
      run_walk<T, C::states, C::lanes>(op, stream, leg);
    });
  });
}

int scan_walk_bytes(const SelectiveScan& op) {
  int bytes = 0;
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    with_cut(detail::d_state_of(op), 8, [&](auto cut) {
      using C = decltype(cut);
      bytes = static_cast<int>(sizeof(WalkMemory<T, C::states, C::lanes>)) + relay_bytes;
    });
  });
  return bytes;
}

}  // namespace mamba::cuda
