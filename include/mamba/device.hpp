// Where a tensor lives and an operation runs. A value; no "current device" leaks out.
#pragma once

#include <string>
#include <string_view>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

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

// The kernels that operations on the CPU take on this processor, for people to read: Highway's name
// of the instruction set and how factors of bf16 are multiplied, as in "AVX3, bf16 in pairs" (AVX3
// is AVX-512; pairs need its BF16 part) or "AVX2, bf16 as f32".
std::string cpu_kernels();

}  // namespace mamba
