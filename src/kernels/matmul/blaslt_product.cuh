// One Matmul as cuBLASLt sees it: matrices, descriptors, and the key that its algorithm is kept
// under.
#pragma once

#include <cublasLt.h>

#include <algorithm>

#include "detail/channel_rows.hpp"
#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda::blas {

inline void check_blas(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError("matmul", "cuBLASLt", "success", cublasLtGetStatusString(status));
}

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

inline int alignment_of(const void* data, std::int64_t pitch_bytes,
                        std::int64_t batch_pitch_bytes) {
  int alignment = 16;
  while (!is_aligned(data, pitch_bytes, alignment) || batch_pitch_bytes % alignment != 0) {
    alignment /= 2;
  }
  return alignment;
}

inline cudaDataType type_of(DType dtype) {
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
  std::int64_t batch, rows, in, out;  // y [batch, rows, out], sums over `in`
  DType dtype, y_dtype;
  bool bias, transpose_weight, transpose_x, accumulate;
  int x_alignment, weight_alignment, y_alignment;

  // Of the matrices as they lie in memory.
  std::int64_t x_rows() const { return transpose_x ? in : rows; }
  std::int64_t weight_rows() const { return transpose_weight ? in : out; }

  friend bool operator==(const Key& a, const Key& b) {
    return a.batch == b.batch && a.rows == b.rows && a.in == b.in && a.out == b.out &&
           a.dtype == b.dtype && a.y_dtype == b.y_dtype && a.bias == b.bias &&
           a.transpose_weight == b.transpose_weight && a.transpose_x == b.transpose_x &&
           a.accumulate == b.accumulate && a.x_alignment == b.x_alignment &&
           a.weight_alignment == b.weight_alignment && a.y_alignment == b.y_alignment;
  }
};

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0;
    for (const std::int64_t part :
         {key.batch, key.rows, key.in, key.out, static_cast<std::int64_t>(key.dtype),
          static_cast<std::int64_t>(key.y_dtype), std::int64_t{key.bias},
          std::int64_t{key.transpose_weight}, std::int64_t{key.transpose_x},
          std::int64_t{key.accumulate}, std::int64_t{key.x_alignment},
          std::int64_t{key.weight_alignment}, std::int64_t{key.y_alignment}}) {
      hash = (hash ^ static_cast<std::uint64_t>(part)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

// Where x is transposed, its rows and those of the weight must be evenly pitched.
struct Product {
  Matrix x, weight, y;
  Key key;

  explicit Product(const Matmul& op) {
    const detail::ChannelRows x_rows(op.x);
    const detail::ChannelRows weight_rows(op.weight);
    const detail::ChannelRows y_rows(op.y);
    // Batch and time are one dimension of rows where both x and y allow it; else a batch of
    // products.
    key.batch = op.transpose_x ? 1 : std::max(x_rows.batch, y_rows.batch);
    key.rows = y_rows.count() / key.batch;
    key.in = op.transpose_x ? x_rows.count() : op.x.shape().back();
    key.out = op.y.shape().back();
    x = matrix(op.x, x_rows);
    y = matrix(op.y, y_rows);
    weight = matrix(op.weight, weight_rows);
    key.dtype = op.x.dtype();
    key.y_dtype = op.y.dtype();
    key.bias = static_cast<bool>(op.bias);
    key.transpose_weight = op.transpose_weight;
    key.transpose_x = op.transpose_x;
    key.accumulate = op.accumulate;
    key.x_alignment = x.alignment;
    key.weight_alignment = weight.alignment;
    key.y_alignment = y.alignment;
  }

 private:
  Matrix matrix(const ConstTensorView& view, const detail::ChannelRows& from) const {
    Matrix m;
    m.type = type_of(view.dtype());
    m.length = view.shape().back();
    m.pitch = std::max(from.time_pitch, m.length);
    m.batch_pitch = 0;  // also of a weight, which all products of a batch share
    if (key.batch > 1 && view.rank() == 3) {
      m.batch_pitch = from.batch == 1 ? key.rows * from.time_pitch : from.batch_pitch;
    }
    const std::int64_t size = size_of(view.dtype());
    m.alignment = alignment_of(view.data(), m.pitch * size, m.batch_pitch * size);
    return m;
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
    // It sees the transposes of all matrices: y^T = weight x^T.
    set(CUBLASLT_MATMUL_DESC_TRANSA, key.transpose_weight ? CUBLAS_OP_N : CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, key.transpose_x ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, y_matrix.type);
    }
    describe(weight, weight_matrix, key.weight_rows(), key.batch);
    describe(x, x_matrix, key.x_rows(), key.batch);
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

}  // namespace mamba::cuda::blas
