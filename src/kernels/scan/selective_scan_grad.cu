// The gradient of the selective scan: scan_grad_ring.cuh, then sums in a fixed order of what each
// of its blocks leaves, over blocks of channels (dB and dC) or over the batch (dA_log or
// dA, dD, ddt_bias).
#include <algorithm>
#include <string>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/scan/scan_grad_ring.cuh"
#include "kernels/scan/scan_launch.hpp"

namespace mamba::cuda {

namespace {

template <class T, int Channels, bool Grows>
__global__ void __launch_bounds__(32 * GradRing<T, Channels, Grows>::most_warps(compiled_for), 1)
    grad_ring_kernel(const __grid_constant__ ScanGradOperands op) {
  extern __shared__ __align__(16) char scan_memory[];
  GradRing<T, Channels, Grows>(op, scan_memory).run();
}

// dB and dC, in the storage type, from [batch, chunks, d_state, 2, scan_chunk].
template <class T>
struct PutStates {
  ScanTrack dB, dC;
  std::int64_t time, chunks;
  int d_state;

  // Whether the step is one of the sequence.
  __device__ bool wants(std::int64_t i) const {
    const std::int64_t row = i / (2 * scan_chunk) / d_state;
    return row % chunks * scan_chunk + i % scan_chunk < time;
  }
  __device__ void operator()(std::int64_t i, float sum) const {
    const std::int64_t state = i / (2 * scan_chunk), row = state / d_state, b = row / chunks;
    const std::int64_t t = (row - b * chunks) * scan_chunk + i % scan_chunk;
    T* to = i / scan_chunk % 2 == 0 ? dB.out<T>(b, t) : dC.out<T>(b, t);
    to[state - row * d_state] = from_float<T>(sum);
  }
};
template <class Put>
__global__ void __launch_bounds__(256)
    add_blocks_kernel(const float* partials, int blocks, std::int64_t columns, const Put put) {
  const std::int64_t column = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (column >= columns || !put.wants(column)) return;
  float sum = 0;
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) sum += partials[block * columns + column];
  put(column, sum);
}

// dA_log or dA, dD and ddt_bias from [batch, channels, d_state + 2].
struct PutChannels {
  float *dA, *dD, *ddt_bias;
  int d_state;
  bool accumulate;

  __device__ bool wants(std::int64_t) const { return true; }
  __device__ void operator()(std::int64_t i, float sum) const {
    const std::int64_t c = i / (d_state + 2);
    const auto n = static_cast<int>(i - c * (d_state + 2));
    float* to = n == d_state + 1 ? ddt_bias : n == d_state ? dD : dA;
    if (to == nullptr) return;
    to += n < d_state ? c * d_state + n : c;
    *to = accumulate ? *to + sum : sum;
  }
};

template <class Put>
void add_blocks(const float* partials, std::int64_t blocks, std::int64_t columns, const Put& put,
                Stream& stream) {
  if (columns == 0) return;
  launch(add_blocks_kernel<Put>, static_cast<unsigned>(divide_up(columns, 256)), 256, 0, stream,
         "selective_scan_grad", partials, static_cast<int>(blocks), columns, put);
}

template <class T, int Channels, bool Grows>
void run_ring(const SelectiveScanGrad& op, Stream& stream, int warps) {
  using Block = GradRing<T, Channels, Grows>;
  ScanGradOperands operands(op);
  const std::int64_t across = divide_up(op.x.dim(2), Channels);
  Scratch scratch(stream);
  const std::int64_t chunks = divide_up(op.x.dim(1), scan_chunk);
  const std::int64_t states = op.x.dim(0) * chunks * operands.d_state * 2 * scan_chunk;
  operands.dBC = scratch.take({across, states}, DType::f32).data<float>();
  operands.sums =
      scratch.take({op.x.dim(0), op.x.dim(2), operands.d_state + 2}, DType::f32).data<float>();
  const int most = shared_memory(stream.device(), "selective_scan_grad");
  const auto kernel = grad_ring_kernel<T, Channels, Grows>;
  const int capability = capability_of(kernel, stream.device(), "selective_scan_grad");
  warps = std::min(warps, Block::most_warps(capability));
  while (warps > 1 && Block::shared_bytes(warps, operands.d_state) > most) --warps;
  if (op.x.dim(0) * across > 0) {
    launch(kernel, static_cast<unsigned>(op.x.dim(0) * across), 32 * warps,
           static_cast<std::size_t>(Block::shared_bytes(warps, operands.d_state)), stream,
           "selective_scan_grad", operands);
  }
  add_blocks(
      operands.dBC, across, states,
      PutStates<T>{ScanTrack(op.dB), ScanTrack(op.dC), op.x.dim(1), chunks, operands.d_state},
      stream);
  const auto data = [](const TensorView& view) { return view ? view.data<float>() : nullptr; };
  add_blocks(operands.sums, op.x.dim(0), op.x.dim(2) * (operands.d_state + 2),
             PutChannels{data(op.A ? op.dA : op.dA_log), data(op.dD), data(op.ddt_bias),
                         operands.d_state, op.accumulate},
             stream);
}

}  // namespace

void run_scan_grad(const SelectiveScanGrad& op, Stream& stream, const ScanGeometry& geometry) {
  if (op.chunk_steps != scan_chunk) {
    throw ArgumentError("selective_scan_grad", "chunk_steps", std::to_string(scan_chunk),
                        std::to_string(op.chunk_steps));
  }
  const OnDevice current(stream.device(), "selective_scan_grad");
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (detail::may_grow(op)) return run_ring<T, 32, true>(op, stream, geometry.warps);
    geometry.channels == 32 ? run_ring<T, 32, false>(op, stream, geometry.warps)
                            : run_ring<T, 16, false>(op, stream, geometry.warps);
  });
}

RingNeeds ring_needs(const SelectiveScanGrad& op, int channels, const Limits& device) {
  RingNeeds needs{};
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    using Wide = GradRing<T, 32, false>;  // as where states may grow
    using Narrow = GradRing<T, 16, false>;
    const auto d_state = static_cast<int>(detail::d_state_of(op));
    needs = channels == 32 ? RingNeeds::of<Wide>(Wide::most_warps(device.capability), d_state)
                           : RingNeeds::of<Narrow>(Narrow::most_warps(device.capability), d_state);
  });
  return needs;
}

}  // namespace mamba::cuda
