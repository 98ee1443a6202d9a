// In a build without NCCL.
#include <mamba/error.hpp>

#include "ranks.hpp"

void on_several(const std::vector<mamba::Device>& devices, const std::function<void(Ranks&)>&) {
  throw mamba::DeviceError("train-lm", "--device", "one device (this build has no NCCL)",
                           std::to_string(devices.size()));
}
