// The Matmul on CUDA: which of the four ways, and the one through cuBLASLt.
#include <mutex>
#include <unordered_map>

#include "detail/stream_access.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/matmul/blaslt_product.cuh"
#include "kernels/matmul/matmul.hpp"
#include "kernels/matmul/tiled_matmul.cuh"

namespace mamba::cuda {

namespace {

using namespace blas;

constexpr const char* where = "matmul";
constexpr std::uint64_t workspace_limit = std::uint64_t{32} << 20;

// ---- the algorithms of a stream ---------------------------------------------------------------

struct Algorithm {
  bool found = false;
  cublasLtMatmulAlgo_t choice{};
  std::size_t workspace = 0;
};

// cuBLASLt's own first choice for the key. Where a sum is split over blocks, its parts are kept in
// f32 and added in a second pass, in order: the other schemes go through the 16-bit output. Not
// with a bias and a 16-bit y: version 13.1 then rounds the sum before it adds the bias (measured;
// only bf16 was seen); and not where a 16-bit y is added to, lest it do the same.
Algorithm choose(cublasLtHandle_t handle, const Product& product, const void* bias) {
  const Key& key = product.key;
  const Matrix x = product.x.canonical(key.x_rows());
  const Matrix weight = product.weight.canonical(key.weight_rows());
  const Matrix y = product.y.canonical(key.rows);
  Descriptors descriptors(key, x, weight, y, bias);
  cublasLtMatmulPreferenceOpaque_t preference;
  check_blas(cublasLtMatmulPreferenceInit(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_limit);
  const bool may_split = (bias == nullptr && !key.accumulate) || y.type == CUDA_R_32F;
  const std::uint32_t schemes =
      may_split ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(weight.alignment));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(x.alignment));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(y.alignment));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(y.alignment));
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &descriptors.operation, &descriptors.weight, &descriptors.x, &descriptors.y,
      &descriptors.y, &preference, 1, &result, &count);
  Algorithm algorithm;
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || count == 0) return algorithm;
  check_blas(status);
  algorithm.found = result.state == CUBLAS_STATUS_SUCCESS;
  algorithm.choice = result.algo;
  algorithm.workspace = result.workspaceSize;
  return algorithm;
}

// One for each device, which any thread may use. None is ever destroyed: that waits for all of the
// device, and so ends what another thread is recording with an error.
struct Handle {
  std::once_flag made;
  cublasLtHandle_t handle = nullptr;
};
cublasLtHandle_t handle_of(Device device) {
  Handle& one = kept_for<Handle>(device, where);
  std::call_once(one.made, [&] { check_blas(cublasLtCreate(&one.handle)); });
  return one.handle;
}

// What a stream keeps: one algorithm for each key ever asked for.
struct BlasLt {
  cublasLtHandle_t handle;
  std::unordered_map<Key, Algorithm, KeyHash> algorithms;

  explicit BlasLt(Device device) : handle(handle_of(device)) {}

  static BlasLt& of(Stream& stream) {
    std::shared_ptr<void>& slot = StreamAccess::matmul(stream);
    if (slot == nullptr) slot = std::make_shared<BlasLt>(stream.device());
    return *static_cast<BlasLt*>(slot.get());
  }
  const Algorithm& algorithm(const Product& product, const void* bias) {
    const auto known = algorithms.find(product.key);
    if (known != algorithms.end()) return known->second;
    return algorithms.emplace(product.key, choose(handle, product, bias)).first->second;
  }
};

// The bias as cuBLASLt takes it: of y's type and on a 16-byte boundary.
const void* usable_bias(const Matmul& op, Scratch& scratch, Stream& stream) {
  if (!op.bias) return nullptr;
  if (op.bias.dtype() == op.y.dtype() && is_aligned(op.bias.data(), 0, 16)) return op.bias.data();
  const TensorView copied = scratch.take(op.bias.shape(), op.y.dtype());
  cuda::copy(op.bias, copied, stream);
  return copied.data();
}

// The view itself, or a dense copy where batch and time are not one dimension of rows.
ConstTensorView even_rows(const ConstTensorView& view, Scratch& scratch, Stream& stream) {
  if (detail::ChannelRows(view).evenly_pitched()) return view;
  const TensorView copied = scratch.take(view.shape(), view.dtype());
  cuda::copy(view, copied, stream);
  return copied;
}

// False, with nothing queued but copied operands, where cuBLASLt has no algorithm.
bool blaslt(Matmul op, Stream& stream) {
  // Its epilogue rounds between the bias and what is there already.
  if (op.bias && op.accumulate && op.y.dtype() != DType::f32) return false;
  const AllocationsInCapture allowed;  // a first product makes a handle and scratch memory
  BlasLt& blas = BlasLt::of(stream);
  Scratch scratch(stream);
  if (op.transpose_x) {  // sums over all rows
    op.x = even_rows(op.x, scratch, stream);
    op.weight = even_rows(op.weight, scratch, stream);
  }
  const Product product(op);
  const void* bias = usable_bias(op, scratch, stream);
  const Algorithm& algorithm = blas.algorithm(product, bias);
  if (!algorithm.found) return false;
  void* workspace = nullptr;
  if (algorithm.workspace > 0) {
    const auto floats = static_cast<std::int64_t>((algorithm.workspace + 3) / 4);
    workspace = scratch.take({floats}, DType::f32).data();
  }
  Descriptors descriptors(product.key, product.x, product.weight, product.y, bias);
  const float one = 1;
  const float kept = op.accumulate ? 1 : 0;
  const cublasStatus_t status = cublasLtMatmul(
      blas.handle, &descriptors.operation, &one, op.weight.data(), &descriptors.weight, op.x.data(),
      &descriptors.x, &kept, op.y.data(), &descriptors.y, op.y.data(), &descriptors.y,
      &algorithm.choice, workspace, algorithm.workspace, handle(stream));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
  check_blas(status);
  return true;
}

void tiled(const Matmul& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  const auto tiles = [](std::int64_t size) { return (size + tile_side - 1) / tile_side; };
  visit_load(op, [&](auto type) {
    using Load = typename decltype(type)::type;
    launch(tiled_matmul_kernel<Load>,
           static_cast<unsigned>(tiles(rows) * tiles(op.y.shape().back())), tile_threads, 0, stream,
           where, MatmulOperands<Load>(op));
  });
}

}  // namespace

bool can_run(const Matmul& op, MatmulPlan plan) {
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  const std::int64_t in = op.transpose_x ? detail::ChannelRows(op.x).count() : op.x.shape().back();
  switch (plan) {
    case MatmulPlan::gemv:
      return !op.transpose_weight && rows <= gemv_max_rows && in <= gemv_max_in;
    case MatmulPlan::skinny:
      return skinny_can_run(op);
    case MatmulPlan::blaslt:
      return in > 0 && op.weight.dtype() == op.x.dtype();
    default:
      return true;
  }
}

MatmulPlan plan(const Matmul& op) {
  const bool few = detail::ChannelRows(op.y).count() <= gemv_good_rows(op);
  if (few && can_run(op, MatmulPlan::gemv)) return MatmulPlan::gemv;
  if (skinny_is_good(op) && can_run(op, MatmulPlan::skinny)) return MatmulPlan::skinny;
  return can_run(op, MatmulPlan::blaslt) ? MatmulPlan::blaslt : MatmulPlan::tiled;
}

void run(const Matmul& op, Stream& stream, MatmulPlan plan) {
  if (op.y.count() == 0) return;
  const OnDevice current(stream.device(), where);
  if (plan == MatmulPlan::gemv) return gemv(op, stream);
  if (plan == MatmulPlan::skinny) return skinny(op, stream);
  if (plan == MatmulPlan::blaslt && blaslt(op, stream)) return;
  tiled(op, stream);
}

void run(const Matmul& op, Stream& stream) { run(op, stream, plan(op)); }

}  // namespace mamba::cuda
