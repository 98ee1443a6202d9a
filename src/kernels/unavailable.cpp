// Operations that have no CUDA kernel: asking for one is an error.
#include "detail/backend.hpp"

namespace mamba::cuda {

namespace {

[[noreturn]] void refuse(const char* where, const Stream& stream) {
  throw DeviceError(where, "device", "cpu (there is no CUDA kernel)", stream.device().name());
}

}  // namespace

std::int64_t scan_chunk_steps(const SelectiveScan&, const Stream& stream) {
  refuse("scan_chunk_steps", stream);
}
void run(const LayerNorm&, Stream& stream) { refuse("layer_norm", stream); }
void run(const SumRows&, Stream& stream) { refuse("sum_rows", stream); }
void run(const CausalConvGrad&, Stream& stream) { refuse("causal_conv_grad", stream); }
void run(const SelectiveScanGrad&, Stream& stream) { refuse("selective_scan_grad", stream); }
void run(const AddRmsNormGrad&, Stream& stream) { refuse("add_rms_norm_grad", stream); }
void run(const LayerNormGrad&, Stream& stream) { refuse("layer_norm_grad", stream); }
void run(const EmbeddingGrad&, Stream& stream) { refuse("embedding_grad", stream); }
void run(const CrossEntropy&, Stream& stream) { refuse("cross_entropy", stream); }
void run(const Activate&, Stream& stream) { refuse("activate", stream); }
void run(const ActivateGrad&, Stream& stream) { refuse("activate_grad", stream); }
void run(const Categorical&, Stream& stream) { refuse("categorical", stream); }
void run(const CategoricalGrad&, Stream& stream) { refuse("categorical_grad", stream); }
void run(const SumSquares&, Stream& stream) { refuse("sum_squares", stream); }
void run(const AdamWStep&, Stream& stream) { refuse("adamw_step", stream); }

}  // namespace mamba::cuda
