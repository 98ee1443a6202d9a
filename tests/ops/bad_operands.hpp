// Every operation with every operand wrong in every way, one at a time: an ArgumentError in the
// operation's name, and nothing is written.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <mamba/grad_ops.hpp>
#include <mamba/ops.hpp>
#include <mamba/train_ops.hpp>

#include "testing.hpp"

namespace mamba::testing {

// What a wrong operand may be without being wrong.
enum Tolerance : unsigned {
  exact = 0,
  optional = 1,     // absent
  any_float = 2,    // another storage dtype
  any_dtype = 4,    // another dtype
  free_rows = 8,    // another first size
  free_steps = 16,  // another second size
  free_last = 32,   // another last size
  dense = 64,       // must be dense, where others need not
};

template <class Op>
struct Operand {
  const char* name;
  std::function<ConstTensorView&(Op&)> of;
  Shape shape;
  DType dtype = DType::f32;
  unsigned tolerance = exact;
};

// One operation: a valid call of it, and the wrong ones next to that.
template <class Op>
class BadCalls {
 public:
  BadCalls(const char* where, std::vector<Operand<Op>> operands, Op options = {})
      : where_(where), operands_(std::move(operands)), options_(options) {}

  // How many wrong calls there were.
  int run_on(Device device) {
    device_ = device;
    memory_.clear();
    for (const Operand<Op>& operand : operands_) {
      memory_.push_back(Tensor::zeros({4 * operand.shape.count() + 256}, DType::f32, device));
    }
    count_ = 0;
    Stream& stream = default_stream(device);
    Op valid = make();
    EXPECT_NO_THROW({
      run(valid, stream);
      stream.synchronize();
    }) << where_;
    for (std::size_t i = 0; i < operands_.size(); ++i) break_operand(i);
    return count_;
  }

 private:
  ConstTensorView view(std::size_t i, const Shape& shape, DType dtype) const {
    return {memory_[i].view().data(), shape, dtype, device_};
  }

  Op make() const {
    Op op = options_;
    for (std::size_t i = 0; i < operands_.size(); ++i) {
      operands_[i].of(op) = view(i, operands_[i].shape, operands_[i].dtype);
    }
    return op;
  }

  void break_operand(std::size_t i) {
    const Operand<Op>& operand = operands_[i];
    const Shape& shape = operand.shape;
    const unsigned tolerance = operand.tolerance;
    if ((tolerance & optional) == 0) expect_refused(i, "absent", {});
    for (int d = 0; d < shape.rank(); ++d) {
      const unsigned free = d == shape.rank() - 1 ? free_last : d == 0 ? free_rows : free_steps;
      const unsigned first = d == 0 ? tolerance & free_rows : 0;
      if ((tolerance & free) != 0 || first != 0) continue;
      for (const std::int64_t size : {shape[d] + 1, shape[d] - 1}) {
        if (size < 1) continue;
        expect_refused(i, "size " + std::to_string(d) + " is " + std::to_string(size),
                       view(i, shape.with(d, size), operand.dtype));
      }
    }
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i32}) {
      if (dtype == operand.dtype || (tolerance & any_dtype) != 0) continue;
      if (dtype != DType::i32 && (tolerance & any_float) != 0) continue;
      expect_refused(i, name_of(dtype), view(i, shape, dtype));
    }
    if (shape.rank() == 1) {
      expect_refused(i, "one dimension more", view(i, {1, shape[0]}, operand.dtype));
    } else {
      const std::int64_t rows = shape.count() / shape[0];
      if (shape.count() > 0 && (tolerance & free_steps) == 0) {
        expect_refused(i, "one dimension", view(i, {shape[0] * rows}, operand.dtype));
      }
    }
    if ((tolerance & dense) != 0) {
      const std::int64_t last = shape.back();
      const ConstTensorView wide = view(i, shape.with(shape.rank() - 1, last + 3), operand.dtype);
      if (shape.rank() > 1 && shape.rank() < 4) {
        expect_refused(i, "strided", wide.columns(0, last));
      }
    }
    for (const Device other : devices()) {
      if (other == device_) continue;
      const Tensor elsewhere(shape, operand.dtype, other);
      expect_refused(i, ("on " + other.name()).c_str(), elsewhere);
    }
  }

  void expect_refused(std::size_t i, const std::string& how, const ConstTensorView& wrong) {
    SCOPED_TRACE(std::string(where_) + ", " + operands_[i].name + ": " + how);
    ++count_;
    Op op = make();
    operands_[i].of(op) = wrong;
    std::vector<std::vector<unsigned char>> before;
    for (const Tensor& tensor : memory_) before.push_back(bits(tensor));
    Stream& stream = default_stream(device_);
    try {
      run(op, stream);
      ADD_FAILURE() << "no error";
    } catch (const ArgumentError& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.find(std::string(where_) + ": "), 0u) << text;
      EXPECT_NE(text.find(": expected "), std::string::npos) << text;
      EXPECT_NE(text.find(", got "), std::string::npos) << text;
    }
    for (std::size_t k = 0; k < memory_.size(); ++k) {
      EXPECT_EQ(bits(memory_[k]), before[k]) << operands_[k].name << " was written";
    }
  }

  const char* where_;
  std::vector<Operand<Op>> operands_;
  Op options_;
  Device device_;
  std::vector<Tensor> memory_;
  int count_ = 0;
};

// {"x", member x of the operation, ...}
#define OPERAND(type, name, ...)                                              \
  Operand<type> {                                                             \
#name, [](type & op) -> ConstTensorView& { return op.name; }, __VA_ARGS__ \
  }

constexpr DType i32 = DType::i32;
constexpr DType f32 = DType::f32;

template <class Op>
void expect_refused_operands(Device device, int least, const char* where,
                             std::vector<Operand<Op>> operands, Op options = {}) {
  EXPECT_GE(BadCalls<Op>(where, std::move(operands), options).run_on(device), least);
}

}  // namespace mamba::testing
