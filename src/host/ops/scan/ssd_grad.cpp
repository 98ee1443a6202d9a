// SsdGrad on the CPU: a named error in the place of loops.
#include <mamba/error.hpp>

#include "detail/backend.hpp"

namespace mamba::host {

void run(const SsdGrad&, Stream& stream) {
  throw DeviceError("ssd_grad", "device", "a device that has it", stream.device().name());
}

}  // namespace mamba::host
