// What cannot fit in memory is refused before any of it is taken: a system that gives out more than
// it has would end the program, or another one, in the middle of its work.
#pragma once

#include <mamba/config.hpp>
#include <mamba/device.hpp>
#include <mamba/dtype.hpp>

// Bytes, as doubles, since what is asked for may be more than 64 bits count.
double bytes_of_state(const mamba::LanguageModelConfig& config,
                      mamba::DType dtype);  // of one sequence
// Of a generator in a pool: its state, its logits, and what it counts of tokens.
double bytes_of_generator(const mamba::LanguageModelConfig& config, mamba::DType dtype);
// Of weights whose matrices have this dtype.
double bytes_of_model(const mamba::LanguageModelConfig& config, mamba::DType dtype);
// At the least, of a call of so many tokens in all rows: what goes from layer to layer.
double bytes_of_call(const mamba::LanguageModelConfig& config, double tokens);

// Throws in the name of `command` and `flag` if `bytes`, for `what`, are more than the memory of
// the machine; nothing on a device, whose own allocations fail at once and harm nobody.
void check_memory(const char* command, const char* flag, const char* what, double bytes,
                  mamba::Device device);
