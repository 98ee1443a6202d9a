// How often a scan keeps a state for its gradient.
#pragma once

#include <cstdint>

#include <mamba/ops.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// The chunk length that the gradient of this scan (its shapes and dtype) is fastest with on the
// stream's device. Every device takes its own answer for the same shapes; the CPU takes any length.
std::int64_t scan_chunk_steps(const SelectiveScan& op, const Stream& stream);
std::int64_t scan_chunk_steps(const Ssd& op, const Stream& stream);

}  // namespace detail
}  // namespace mamba
