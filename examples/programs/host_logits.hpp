// What a generator would choose from, where the host can read it.
#pragma once

#include <mamba/generator.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

// The logits for the next token, [1, vocab_size] f32, on the CPU.
inline mamba::Tensor host_logits(mamba::Generator& generator) {
  const mamba::ConstTensorView logits = generator.logits();
  mamba::Tensor here(logits.shape(), logits.dtype());
  mamba::copy(logits, here, generator.stream());
  generator.stream().synchronize();
  return here;
}
