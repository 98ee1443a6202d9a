// The Matmul on CUDA: which of the three ways, and the one through cuBLASLt.
#include <cublasLt.h>

#include <algorithm>
#include <unordered_map>

#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "kernels/cuda.cuh"
#include "kernels/matmul.hpp"
#include "kernels/tiled_matmul.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "matmul";
constexpr std::uint64_t workspace_limit = std::uint64_t{32} << 20;

void check_blas(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(where, "cuBLASLt", "success", cublasLtGetStatusString(status));
}

// A stream's first product makes a handle and scratch memory, which a thread that is recording a
// graph may do only when it says that it knows: what is made stays with the stream and not with the
// graph.
class AllocationsInCapture {
 public:
  AllocationsInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~AllocationsInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  AllocationsInCapture(const AllocationsInCapture&) = delete;
  AllocationsInCapture& operator=(const AllocationsInCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// ---- one product, as cuBLASLt sees it
// ---------------------------------------------------------------

// A matrix whose rows are `length` contiguous elements, `pitch` apart. To cuBLASLt, which counts
// columns first, it is the transpose.
struct Matrix {
  cudaDataType type;
  std::int64_t length;
  std::int64_t pitch;
  std::int64_t batch_pitch;
  int alignment;  // bytes, a power of two up to 16, of every row

  // The smallest pitches of this alignment (and no higher one) that the rows fit into.
  Matrix canonical(std::int64_t rows) const {
    const std::int64_t size = type == CUDA_R_32F ? 4 : 2;
    const std::int64_t unit = std::max<std::int64_t>(alignment / size, 1);
    Matrix result = *this;
    result.pitch = (length + unit - 1) / unit * unit;
    if (alignment < 16 && result.pitch / unit % 2 == 0) result.pitch += unit;
    if (batch_pitch != 0) result.batch_pitch = rows * result.pitch;
    return result;
  }
};

int alignment_of(const void* data, std::int64_t pitch_bytes, std::int64_t batch_pitch_bytes) {
  int alignment = 16;
  while (!is_aligned(data, pitch_bytes, alignment) || batch_pitch_bytes % alignment != 0) {
    alignment /= 2;
  }
  return alignment;
}

cudaDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

// Everything an algorithm is chosen by. Not the pitches beyond their alignment: the same shape
// gives the same bits whether an operand is dense or a slice of a wider tensor.
struct Key {
  std::int64_t batch, rows, in, out;
  DType dtype, y_dtype;
  bool bias;
  int x_alignment, weight_alignment, y_alignment;

  friend bool operator==(const Key& a, const Key& b) {
    return a.batch == b.batch && a.rows == b.rows && a.in == b.in && a.out == b.out &&
           a.dtype == b.dtype && a.y_dtype == b.y_dtype && a.bias == b.bias &&
           a.x_alignment == b.x_alignment && a.weight_alignment == b.weight_alignment &&
           a.y_alignment == b.y_alignment;
  }
};

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0;
    for (const std::int64_t part :
         {key.batch, key.rows, key.in, key.out, static_cast<std::int64_t>(key.dtype),
          static_cast<std::int64_t>(key.y_dtype), std::int64_t{key.bias},
          std::int64_t{key.x_alignment}, std::int64_t{key.weight_alignment},
          std::int64_t{key.y_alignment}}) {
      hash = (hash ^ static_cast<std::uint64_t>(part)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

struct Product {
  std::int64_t batch;
  std::int64_t rows;  // in each part of the batch
  Matrix x, weight, y;
  Key key;

  explicit Product(const Matmul& op) {
    // Batch and time are one dimension of rows where both x and y allow it; else a batch of
    // products.
    host::ChannelRows x_rows(op.x);
    host::ChannelRows y_rows(op.y);
    batch = std::max(x_rows.batch, y_rows.batch);
    rows = x_rows.count() / batch;
    const auto matrix = [&](const ConstTensorView& view, const host::ChannelRows& from) {
      Matrix m;
      m.type = type_of(view.dtype());
      m.length = view.shape().back();
      m.pitch = std::max(from.time_pitch, m.length);
      m.batch_pitch = batch == 1 ? 0 : from.batch == 1 ? rows * from.time_pitch : from.batch_pitch;
      const std::int64_t size = size_of(view.dtype());
      m.alignment = alignment_of(view.data(), m.pitch * size, m.batch_pitch * size);
      return m;
    };
    x = matrix(op.x, x_rows);
    y = matrix(op.y, y_rows);
    weight = matrix(op.weight, host::ChannelRows(op.weight));
    weight.batch_pitch = 0;
    weight.alignment = alignment_of(op.weight.data(), weight.pitch * size_of(op.x.dtype()), 0);
    key = {batch,
           rows,
           op.weight.dim(1),
           op.weight.dim(0),
           op.x.dtype(),
           op.y.dtype(),
           static_cast<bool>(op.bias),
           x.alignment,
           weight.alignment,
           y.alignment};
  }
};

// cuBLASLt's own descriptors, without memory of theirs.
struct Descriptors {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight, x, y;

  // `bias`: of y's type, 16-byte aligned; or nullptr.
  Descriptors(const Key& key, const Matrix& x_matrix, const Matrix& weight_matrix,
              const Matrix& y_matrix, const void* bias) {
    // f32 sums. For f32 operands this is true f32: tf32 would be another compute type.
    check_blas(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transpose);
    if (bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, y_matrix.type);
    }
    describe(weight, weight_matrix, key.out, key.batch);
    describe(x, x_matrix, key.rows, key.batch);
    describe(y, y_matrix, key.rows, key.batch);
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check_blas(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)));
  }
  static void describe(cublasLtMatrixLayoutOpaque_t& layout, const Matrix& matrix,
                       std::int64_t rows, std::int64_t batch) {
    check_blas(cublasLtMatrixLayoutInit(&layout, matrix.type,
                                        static_cast<std::uint64_t>(matrix.length),
                                        static_cast<std::uint64_t>(rows), matrix.pitch));
    if (batch == 1) return;
    const auto count = static_cast<std::int32_t>(batch);
    check_blas(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                                sizeof(count)));
    check_blas(cublasLtMatrixLayoutSetAttribute(&layout,
                                                CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &matrix.batch_pitch, sizeof(matrix.batch_pitch)));
  }
};

// ---- the algorithms of a stream
// ---------------------------------------------------------------------

struct Algorithm {
  bool found = false;
  cublasLtMatmulAlgo_t choice{};
  std::size_t workspace = 0;
};

// cuBLASLt's own first choice for the key. Sums that are split over blocks are kept in f32 and
// added in a second pass, in order: the other schemes go through the 16-bit output, or add in the
// order of arrival.
Algorithm choose(cublasLtHandle_t handle, const Product& product, const void* bias) {
  const Key& key = product.key;
  const Matrix x = product.x.canonical(key.rows);
  const Matrix weight = product.weight.canonical(key.out);
  const Matrix y = product.y.canonical(key.rows);
  Descriptors descriptors(key, x, weight, y, bias);
  cublasLtMatmulPreferenceOpaque_t preference;
  check_blas(cublasLtMatmulPreferenceInit(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_limit);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
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

// What a stream keeps: the handle, and one algorithm for each key ever asked for.
struct BlasLt {
  Device device;
  cublasLtHandle_t handle = nullptr;
  std::unordered_map<Key, Algorithm, KeyHash> algorithms;

  explicit BlasLt(Device device_) : device(device_) { check_blas(cublasLtCreate(&handle)); }
  ~BlasLt() {
    int before = 0;
    cudaGetDevice(&before);
    cudaSetDevice(device.index());
    cublasLtDestroy(handle);
    cudaSetDevice(before);
  }
  BlasLt(const BlasLt&) = delete;
  BlasLt& operator=(const BlasLt&) = delete;

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

// False, with nothing queued but a copied bias, where cuBLASLt has no algorithm.
bool blaslt(const Matmul& op, Stream& stream) {
  const AllocationsInCapture allowed;
  BlasLt& blas = BlasLt::of(stream);
  const Product product(op);
  Scratch scratch(stream);
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
  const float zero = 0;
  const cublasStatus_t status = cublasLtMatmul(
      blas.handle, &descriptors.operation, &one, op.weight.data(), &descriptors.weight, op.x.data(),
      &descriptors.x, &zero, op.y.data(), &descriptors.y, op.y.data(), &descriptors.y,
      &algorithm.choice, workspace, algorithm.workspace, handle(stream));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
  check_blas(status);
  return true;
}

void tiled(const Matmul& op, Stream& stream) {
  const std::int64_t rows = host::ChannelRows(op.x).count();
  const auto tiles = [](std::int64_t size) { return (size + tile_side - 1) / tile_side; };
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    tiled_matmul_kernel<T><<<static_cast<unsigned>(tiles(rows) * tiles(op.weight.dim(0))),
                             tile_threads, 0, handle(stream)>>>(MatmulOperands<T>(op));
  });
  check(cudaGetLastError(), where);
}

}  // namespace

MatmulPlan plan(const Matmul& op) {
  if (host::ChannelRows(op.x).count() <= gemv_max_rows(op)) return MatmulPlan::gemv;
  return op.weight.dim(1) == 0 ? MatmulPlan::tiled : MatmulPlan::blaslt;
}

bool can_run(const Matmul& op, MatmulPlan plan) {
  switch (plan) {
    case MatmulPlan::gemv:
      return host::ChannelRows(op.x).count() <= gemv_max_rows(op);
    case MatmulPlan::blaslt:
      return op.weight.dim(1) > 0;
    default:
      return true;
  }
}

void run(const Matmul& op, Stream& stream, MatmulPlan plan) {
  if (op.y.count() == 0) return;
  const OnDevice current(stream.device(), where);
  if (plan == MatmulPlan::gemv) return gemv(op, stream);
  if (plan == MatmulPlan::blaslt && blaslt(op, stream)) return;
  tiled(op, stream);
}

void run(const Matmul& op, Stream& stream) { run(op, stream, plan(op)); }

}  // namespace mamba::cuda
