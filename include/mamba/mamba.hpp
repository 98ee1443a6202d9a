// All of the library.
#pragma once

#include <mamba/check.hpp>
#include <mamba/config.hpp>
#include <mamba/device.hpp>
#include <mamba/dtype.hpp>
#include <mamba/error.hpp>
#include <mamba/generator.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/graph.hpp>
#include <mamba/language_model.hpp>
#include <mamba/layer.hpp>
#include <mamba/layer_grad.hpp>
#include <mamba/ops.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/sampling.hpp>
#include <mamba/stack.hpp>
#include <mamba/state.hpp>
#include <mamba/state_file.hpp>
#include <mamba/stream.hpp>
#include <mamba/tape.hpp>
#include <mamba/tensor.hpp>
#include <mamba/tokenizer.hpp>
#include <mamba/train_ops.hpp>
#include <mamba/version.hpp>
#include <mamba/weights.hpp>
