// What stands behind Tensor, Stream and run(op, stream) on each device. Operands have been checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include <mamba/grad_ops.hpp>
#include <mamba/ops.hpp>
#include <mamba/train_ops.hpp>

namespace mamba::host {

#define MAMBA_OPERATION(Operation, name) void run(const Operation& op, Stream& stream);
#include "detail/operations.inc"

std::int64_t scan_chunk_steps(const SelectiveScan& op, const Stream& stream);
std::int64_t scan_chunk_steps(const Ssd& op, const Stream& stream);

}  // namespace mamba::host

// In src/kernels; in a build without CUDA src/host/ops/no_cuda.cpp, where everything but
// device_count() is a DeviceError.
namespace mamba::cuda {

int device_count();
void check_present(const char* where, Device device);  // a DeviceError if there is no such device
void* allocate(Device device, std::int64_t bytes);
void release(Device device, void* memory) noexcept;
void* allocate_pinned(std::int64_t bytes);
void release_pinned(void* memory) noexcept;

void* make_stream(Device device);
// Waits for the work of a stream that is to go, and lets go of it if it is the library's.
void end_stream(Device device, void* cuda_stream, bool owned) noexcept;
void synchronize(Device device, void* cuda_stream);
// Whether the stream is being recorded, by this library or by whoever lent it.
bool is_recorded(Device device, void* cuda_stream);
bool is_pinned(Device device, const void* memory);  // host memory that devices copy to

void begin_recording(Stream& stream);
void abandon_recording(Stream& stream) noexcept;
void* end_recording(Stream& stream);
void release_recording(Device device, void* graph) noexcept;
void replay(void* graph, Device device, void* cuda_stream);

void* make_event(Device device);
void destroy_event(Device device, void* event) noexcept;
void record_event(void* event, Device device, void* cuda_stream);
void wait_event(void* event);  // on the host

void copy(const ConstTensorView& from, const TensorView& to, Stream& stream);
void zero(const TensorView& view, Stream& stream);

#define MAMBA_OPERATION(Operation, name) void run(const Operation& op, Stream& stream);
#include "detail/operations.inc"

// Whether run() takes the three together.
bool in_one_pass(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv);
void run(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv, Stream& stream);
// run() of each of `count` > 0, in one pass: see detail/fused_ops.hpp.
void run_all(const SumSquares* ops, std::size_t count, Stream& stream);
void run_all(const AdamWStep* ops, std::size_t count, Stream& stream);
// Whether run() takes dt_weight with these operands.
bool projects_dt(const SelectiveScan& op);
std::int64_t scan_chunk_steps(const SelectiveScan& op, const Stream& stream);
std::int64_t scan_chunk_steps(const Ssd& op, const Stream& stream);

}  // namespace mamba::cuda
