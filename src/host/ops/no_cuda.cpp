// The CUDA side of a build without CUDA: there are no devices, and asking for one is an error.
#include "detail/backend.hpp"
#include "detail/mamba1_step.hpp"

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

void run(const Matmul&, Stream&) { refuse("matmul"); }
void run(const CausalConv&, Stream&) { refuse("causal_conv"); }
void run(const SelectiveScan&, Stream&) { refuse("selective_scan"); }
void run(const AddRmsNorm&, Stream&) { refuse("add_rms_norm"); }
void run(const LayerNorm&, Stream&) { refuse("layer_norm"); }
void run(const Embedding&, Stream&) { refuse("embedding"); }
void run(const Sample&, Stream&) { refuse("sample"); }
void run(const CopyRows&, Stream&) { refuse("copy_rows"); }
void run(const ZeroRows&, Stream&) { refuse("zero_rows"); }

bool in_one_pass(const AddRmsNorm&, const Matmul&, const CausalConv&) { refuse("add_rms_norm"); }
void run(const AddRmsNorm&, const Matmul&, const CausalConv&, Stream&) { refuse("add_rms_norm"); }
bool projects_dt(const SelectiveScan&) { refuse("selective_scan"); }
std::int64_t scan_chunk_steps(const SelectiveScan&, const Stream&) { refuse("scan_chunk_steps"); }
bool takes(const Mamba1Step&, const Stream&) { refuse("Stack::forward"); }
void run(const Mamba1Step&, Stream&) { refuse("Stack::forward"); }
void run(const SumRows&, Stream&) { refuse("sum_rows"); }
void run(const CausalConvGrad&, Stream&) { refuse("causal_conv_grad"); }
void run(const SelectiveScanGrad&, Stream&) { refuse("selective_scan_grad"); }
void run(const AddRmsNormGrad&, Stream&) { refuse("add_rms_norm_grad"); }
void run(const LayerNormGrad&, Stream&) { refuse("layer_norm_grad"); }
void run(const EmbeddingGrad&, Stream&) { refuse("embedding_grad"); }
void run(const CrossEntropy&, Stream&) { refuse("cross_entropy"); }
void run(const Activate&, Stream&) { refuse("activate"); }
void run(const ActivateGrad&, Stream&) { refuse("activate_grad"); }
void run(const Categorical&, Stream&) { refuse("categorical"); }
void run(const CategoricalGrad&, Stream&) { refuse("categorical_grad"); }
void run(const SumSquares&, Stream&) { refuse("sum_squares"); }
void run(const AdamWStep&, Stream&) { refuse("adamw_step"); }

}  // namespace mamba::cuda
