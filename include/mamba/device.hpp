// Where a tensor lives and an operation runs. A value; no "current device" leaks out.
#pragma once

#include <string>
#include <string_view>

namespace mamba {

class Device {
 public:
  static constexpr Device cpu() { return Device(-1); }
  // Any index of at least 0 can be named (else an ArgumentError); using a device that does not
  // exist is a DeviceError.
  static constexpr Device cuda(int index = 0) { return Device(index < 0 ? refuse(index) : index); }
  // "cpu", "cuda" or "cuda:N"; anything else is an ArgumentError.
  static Device parse(std::string_view text);

  constexpr Device() = default;  // the CPU
  constexpr bool is_cpu() const { return cuda_index_ < 0; }
  constexpr bool is_cuda() const { return cuda_index_ >= 0; }
  constexpr int index() const { return is_cuda() ? cuda_index_ : 0; }
  std::string name() const {
    return is_cpu() ? std::string("cpu") : "cuda:" + std::to_string(cuda_index_);
  }

  friend constexpr bool operator==(Device a, Device b) { return a.cuda_index_ == b.cuda_index_; }
  friend constexpr bool operator!=(Device a, Device b) { return !(a == b); }

 private:
  constexpr explicit Device(int cuda_index) : cuda_index_(cuda_index) {}
  [[noreturn]] static int refuse(int index);
  int cuda_index_ = -1;
};

// How many CUDA devices can be used: 0 in a build without CUDA or on a machine without a driver.
int cuda_device_count();

}  // namespace mamba
