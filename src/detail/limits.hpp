// What a CUDA device has, as far as the choice of a kernel and its cut depend on it.
#pragma once

#include <mamba/device.hpp>

namespace mamba::cuda {

struct Limits {
  int shared_memory = 0;  // bytes that a block can have, static and dynamic together
  int multiprocessors = 0;
  int capability = 0;        // 10 major + minor
  bool cooperative = false;  // whether the blocks of a kernel can be made to run all at once
};

// Asked of the device once, so it may be called for every launch.
Limits limits(Device device, const char* where);

// For tests: as long as it lives, the thread that made it finds no more than `most` on any device,
// so that what smaller devices get is run on a large one. It is the thread's and not an argument,
// for what asks lies many calls below an operation, and the argument would serve tests alone; other
// threads do not see it.
class LimitedDevices {
 public:
  explicit LimitedDevices(const Limits& most);
  ~LimitedDevices();
  LimitedDevices(const LimitedDevices&) = delete;
  LimitedDevices& operator=(const LimitedDevices&) = delete;

 private:
  Limits most_;
  const LimitedDevices* outer_;

  friend Limits limits(Device device, const char* where);
};

}  // namespace mamba::cuda
