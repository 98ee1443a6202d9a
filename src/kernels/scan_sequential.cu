// Time-sequential: one block walks all of time for its channels.
#include "kernels/scan_launch.cuh"

namespace mamba::cuda {

namespace {

template <class T>
void sequential(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  const bool pipeline = geometry.helpers > 0;
  const ScanLaunch launch(op, geometry, pipeline ? pipeline_steps : phase_steps, pipeline);
  if (pipeline) {
    if (geometry.states == 2) {
      launch_scan(scan_kernel<T, 2, pipeline_steps, true, false>, launch, op, stream);
    } else {
      launch_scan(scan_kernel<T, 4, pipeline_steps, true, false>, launch, op, stream);
    }
  } else if (geometry.states == 8) {
    launch_scan(scan_kernel<T, 8, phase_steps, false, false>, launch, op, stream);
  } else {
    launch_scan(scan_kernel<T, 4, phase_steps, false, false>, launch, op, stream);
  }
}

}  // namespace

void scan_sequential(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  detail::visit(op.x.dtype(), [&](auto type) {
    sequential<typename decltype(type)::type>(op, stream, geometry);
  });
}

}  // namespace mamba::cuda
