// The check of a row map, for every call that takes one.
#pragma once

#include <cstdint>

#include <mamba/ops.hpp>
#include <mamba/stream.hpp>

namespace mamba {

// Throws, in the name of `where`, if `rows` is neither absent nor a map of `batch` rows on the
// stream's device. On the CPU its values are checked too: state rows below `state_rows`, none
// written that another batch row reads or writes. A device looks at the values itself.
void check_rows(const char* where, const RowMap& rows, std::int64_t batch, std::int64_t state_rows,
                Stream& stream);

}  // namespace mamba
