// The CUDA side of a build without CUDA: there are no devices, and asking for one is an error.
#include "detail/backend.hpp"
#include "detail/mamba1_step.hpp"
#include "detail/mamba2_step.hpp"

namespace mamba::cuda {

namespace {

[[noreturn]] void refuse(const char* where, Device device = Device::cuda()) {
  throw DeviceError(where, "device", "cpu (this build has no CUDA)", device.name());
}

}  // namespace

int device_count() { return 0; }
void check_present(const char* where, Device device) { refuse(where, device); }
void* allocate(Device device, std::int64_t) { refuse("Tensor", device); }
void release(Device, void*) noexcept {}
void* allocate_pinned(std::int64_t) { refuse("Tensor::pinned"); }
void release_pinned(void*) noexcept {}

void* make_stream(Device device) { refuse("Stream", device); }
void end_stream(Device, void*, bool) noexcept {}
void synchronize(Device device, void*) { refuse("Stream::synchronize", device); }
bool is_recorded(Device, void*) { return false; }
bool is_pinned(Device, const void*) { return false; }

void begin_recording(Stream&) { refuse("Graph::record"); }
void abandon_recording(Stream&) noexcept {}
void* end_recording(Stream&) { refuse("Graph::record"); }
void release_recording(Device, void*) noexcept {}
void replay(void*, Device, void*) { refuse("Graph::replay"); }

void* make_event(Device device) { refuse("Event", device); }
void destroy_event(Device, void*) noexcept {}
void record_event(void*, Device, void*) { refuse("Event"); }
void wait_event(void*) { refuse("Event"); }

void copy(const ConstTensorView&, const TensorView&, Stream&) { refuse("copy"); }
void zero(const TensorView&, Stream&) { refuse("zero"); }

#define MAMBA_OPERATION(Operation, name) \
  void run(const Operation&, Stream&) { refuse(name); }
#include "detail/operations.inc"

bool in_one_pass(const AddRmsNorm&, const Matmul&, const CausalConv&) { refuse("add_rms_norm"); }
void run(const AddRmsNorm&, const Matmul&, const CausalConv&, Stream&) { refuse("add_rms_norm"); }
void run_all(const SumSquares*, std::size_t, Stream&) { refuse("sum_squares"); }
void run_all(const AdamWStep*, std::size_t, Stream&) { refuse("adamw_step"); }
bool projects_dt(const SelectiveScan&) { refuse("selective_scan"); }
std::int64_t scan_chunk_steps(const SelectiveScan&, const Stream&) { refuse("scan_chunk_steps"); }
std::int64_t scan_chunk_steps(const Ssd&, const Stream&) { refuse("scan_chunk_steps"); }
bool takes(const Mamba1Step&, const Stream&) { refuse("Stack::forward"); }
void run(const Mamba1Step&, Stream&) { refuse("Stack::forward"); }
bool takes(const Mamba2Step&, const Stream&) { refuse("Stack::forward"); }
void run(const Mamba2Step&, Stream&) { refuse("Stack::forward"); }

}  // namespace mamba::cuda
