// Rows that are named on the host, for operations that take them as a tensor.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/ops.hpp>
#include <mamba/stream.hpp>

#include "detail/backend.hpp"

namespace mamba {

// A list of rows as an operand on the stream's device, where it stays for as long as this lives.
class ListedRows {
 public:
  // ArgumentError, in the name of `where`, on a stream that is recorded: every replay would copy
  // from where the list was.
  ListedRows(const char* where, const std::vector<std::int32_t>& rows, Stream& stream)
      : scratch_(stream), host_(rows.data(), count(rows), DType::i32), there_(host_) {
    if (stream.device().is_cpu()) return;
    if (cuda::is_recorded(stream.device(), stream.cuda_stream())) {
      throw ArgumentError(where, "rows", "a tensor where a graph is recorded", "a list");
    }
    const TensorView there = scratch_.take(host_.shape(), DType::i32);
    copy(host_, there, stream);
    there_ = there;
  }

  // What the CPU says of rows that are not there or named twice, for a device that does not look
  // before it works: the same operation, of rows without elements.
  void check_taken(std::int64_t from) const {
    CopyRows op;
    op.from_rows = host_;
    check(op, from, host_.dim(0));
  }
  void check_put(std::int64_t to) const {
    CopyRows op;
    op.to_rows = host_;
    check(op, host_.dim(0), to);
  }

  const ConstTensorView& view() const { return there_; }

 private:
  static Shape count(const std::vector<std::int32_t>& rows) {
    return {static_cast<std::int64_t>(rows.size())};
  }
  static void check(CopyRows& op, std::int64_t from, std::int64_t to) {
    op.from = ConstTensorView(nullptr, {from, 0}, DType::f32);
    op.to = TensorView(nullptr, {to, 0}, DType::f32);
    run(op, default_stream(Device::cpu()));
  }

  Scratch scratch_;
  ConstTensorView host_, there_;
};

}  // namespace mamba
