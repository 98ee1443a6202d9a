// Operations that have no CUDA kernel: asking for one is an error.
#include "detail/backend.hpp"

namespace mamba::cuda {

namespace {

[[noreturn]] void refuse(const char* where, const Stream& stream) {
  throw DeviceError(where, "device", "cpu (there is no CUDA kernel)", stream.device().name());
}

}  // namespace

std::int64_t scan_chunk_steps(const SelectiveScan&, const Stream& stream) {
  refuse("scan_chunk_steps", stream);
}
void run(const SelectiveScanGrad&, Stream& stream) { refuse("selective_scan_grad", stream); }

}  // namespace mamba::cuda
