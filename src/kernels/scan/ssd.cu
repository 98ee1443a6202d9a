// Ssd on CUDA: a named error in the place of kernels.
#include <mamba/error.hpp>

#include "detail/backend.hpp"

namespace mamba::cuda {

namespace {

[[noreturn]] void refuse(const char* where, const Stream& stream) {
  throw DeviceError(where, "device", "cpu (there is no such kernel for CUDA)",
                    stream.device().name());
}

}  // namespace

std::int64_t scan_chunk_steps(const Ssd&, const Stream& stream) {
  refuse("scan_chunk_steps", stream);
}
void run(const Ssd&, Stream& stream) { refuse("ssd", stream); }

}  // namespace mamba::cuda
