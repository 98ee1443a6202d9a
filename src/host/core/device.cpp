#include <mamba/device.hpp>

#include <charconv>

#include <mamba/error.hpp>

#include "detail/backend.hpp"

namespace mamba {

Device Device::parse(std::string_view text) {
  if (text == "cpu") return Device::cpu();
  if (text == "cuda") return Device::cuda(0);
  constexpr std::string_view prefix = "cuda:";
  if (text.substr(0, prefix.size()) == prefix) {
    int index = -1;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + prefix.size(), end, index);
    if (error == std::errc() && stop == end && index >= 0) return Device::cuda(index);
  }
  throw ArgumentError("Device::parse", "device", "cpu, cuda or cuda:N",
                      "\"" + std::string(text) + "\"");
}

int Device::refuse(int index) {
  throw ArgumentError("Device::cuda", "index", "at least 0", std::to_string(index));
}

int cuda_device_count() { return cuda::device_count(); }

}  // namespace mamba
