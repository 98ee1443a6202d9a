// What a state file says, as a hash that is kept in it as a note: a file is believed only where it
// is what was written.
#pragma once

#include <string>

#include <mamba/state_file.hpp>

namespace mamba {

// Adds the note, of everything else that save() will be given. All of it on the host.
void seal(const StackState& state, StateMetadata& metadata, const StateExtras& extras);

// FormatError in the name of `where` unless `saved`, loaded from `path` onto the host, is what was
// sealed.
void check_seal(const char* where, const std::string& path, const SavedState& saved);

}  // namespace mamba
