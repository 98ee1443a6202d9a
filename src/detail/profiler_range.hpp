// Names for what a profiler shows: NVTX ranges in a build with MAMBA_NVTX, nothing in any other.
#pragma once

#ifdef MAMBA_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace mamba::detail {

// From here to the end of the scope, on the calling thread. A profiler puts what is queued on a GPU
// in it under the same name; what a graph replays was queued when it was recorded.
class ProfilerRange {
 public:
#ifdef MAMBA_NVTX
  explicit ProfilerRange(const char* name) { nvtxRangePushA(name); }
  ~ProfilerRange() { nvtxRangePop(); }
#else
  explicit ProfilerRange(const char*) {}
#endif
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

}  // namespace mamba::detail
