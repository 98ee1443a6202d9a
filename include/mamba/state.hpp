// What a Mamba remembers, as a value: make it, pass it, copy it, branch it, batch it, move it.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/config.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

// The tensors of one layer's memory, each [batch, channels, ...].
struct StateTensors {
  Tensor conv;  // [batch, conv channels, d_conv - 1], the model's dtype: the conv's last inputs,
                // oldest first; d_inner channels, and of Mamba-2 those of B and C after them
  Tensor ssm;   // [batch, d_inner, d_state] f32: h of the recurrence

  // f(name, tensor) for each of them, in the order of state_tensors.
  template <class F>
  void each(F&& f);
  template <class F>
  void each(F&& f) const;
};

// One of them, of whichever state.
using StateMember = Tensor StateTensors::*;

// What the library needs to know about one of them.
struct StateTensor {
  const char* name;  // in errors and in files
  StateMember tensor;
  const char* channels;  // what dim(1) counts
  bool f32;              // true: always f32; false: the model's dtype
  bool backward;         // whether backward needs it as it was when the run began
  Shape (*shape)(const LayerConfig& resolved, std::int64_t batch);
};

// What a state consists of, once. Verbs, tapes, files, caches, checkpoints and their errors walk
// this list: another tensor is a member of StateTensors and an entry here.
inline constexpr StateTensor state_tensors[] = {
    {"conv", &StateTensors::conv, "conv channels", /*f32=*/false, /*backward=*/true,
     [](const LayerConfig& c, std::int64_t batch) {
       return Shape{batch, c.conv_channels(), c.d_conv - 1};
     }},
    {"ssm", &StateTensors::ssm, "d_inner", /*f32=*/true, /*backward=*/false,
     [](const LayerConfig& c, std::int64_t batch) {
       return Shape{batch, c.d_inner, c.d_state};
     }},
};

template <class F>
void StateTensors::each(F&& f) {
  for (const StateTensor& one : state_tensors) f(one.name, this->*one.tensor);
}
template <class F>
void StateTensors::each(F&& f) const {
  for (const StateTensor& one : state_tensors) f(one.name, this->*one.tensor);
}

// The verbs of a state: of MambaState (one layer) and of StackState (all layers of a stack).
//
// Every verb checks before it touches anything and names what does not fit (ArgumentError). Each
// has two forms: with a trailing Stream& it is ordered on that stream and waits for nothing;
// without one it has finished when the call returns.
//
// Rows are named by a tensor [n] i32 on the state's device, or by a list: {3, 5}, or a vector. A
// row that is not there, or that scatter is given twice, is an ArgumentError. Rows in a CUDA tensor
// cannot be checked beforehand: gather fills the target of a bad row with NaN, scatter skips it,
// and the stream's next synchronize() throws. A list is copied to the device by the call and gone
// when it returns, so on a CUDA stream that is recorded it is an ArgumentError: a Graph takes a
// tensor.
template <class State>
class StateVerbs {
 public:
  using RowList = std::vector<std::int32_t>;

  // An independent snapshot.
  State clone() const;
  State clone(Stream& stream) const;
  // Puts a snapshot back. Same shapes, dtypes and device; allocates nothing.
  void copy_from(const State& other);
  void copy_from(const State& other, Stream& stream);
  // Forgets everything, or the rows b with mask[b] != 0 (mask [batch] i32). Whatever was there, NaN
  // included, becomes zero.
  void reset();
  void reset(Stream& stream);
  void reset(ConstTensorView mask);
  void reset(ConstTensorView mask, Stream& stream);
  // On another device; `dtype`, if given, converts what has the model's dtype (ssm is always f32).
  State to(Device device) const;
  State to(Device device, Stream& stream) const;
  State to(Device device, DType dtype) const;
  State to(Device device, DType dtype, Stream& stream) const;
  // A new state whose row i is this state's row rows[i].
  State gather(ConstTensorView rows) const;
  State gather(ConstTensorView rows, Stream& stream) const;
  State gather(const RowList& rows) const;
  State gather(const RowList& rows, Stream& stream) const;
  // Row rows[i] of this state becomes row i of `source`, another state; the others stay.
  void scatter(const State& source, ConstTensorView rows);
  void scatter(const State& source, ConstTensorView rows, Stream& stream);
  void scatter(const State& source, const RowList& rows);
  void scatter(const State& source, const RowList& rows, Stream& stream);
  // Each row k times, one after the other: [a, b] becomes [a, a, b, b].
  State repeat(std::int64_t k) const;
  State repeat(std::int64_t k, Stream& stream) const;
  // The rows of all parts, in order.
  static State concat(const std::vector<const State*>& parts);
  static State concat(const std::vector<const State*>& parts, Stream& stream);

 private:
  State& self() { return static_cast<State&>(*this); }
  const State& self() const { return static_cast<const State&>(*this); }
};

// The memory of one layer for each batch row. Zero means nothing seen yet.
struct MambaState : StateTensors, StateVerbs<MambaState> {
  MambaState() = default;
  // Nothing seen yet. Zero fields of `config` are derived, as in Layer; `dtype` is f32, bf16 or
  // f16.
  MambaState(const LayerConfig& config, std::int64_t batch, DType dtype,
             Device device = Device::cpu());

  std::int64_t batch() const { return ssm ? ssm.dim(0) : 0; }
  std::int64_t bytes() const;
  DType dtype() const { return conv.dtype(); }  // the model's
  Device device() const { return ssm.device(); }
};

// The memory of a whole stack, layer by layer.
struct StackState : StateVerbs<StackState> {
  std::vector<MambaState> layers;

  StackState() = default;
  StackState(const LayerConfig& config, std::int64_t n_layer, std::int64_t batch, DType dtype,
             Device device = Device::cpu());

  std::int64_t batch() const { return layers.empty() ? 0 : layers.front().batch(); }
  std::int64_t bytes() const;
  DType dtype() const { return layers.empty() ? DType::f32 : layers.front().dtype(); }
  Device device() const { return layers.empty() ? Device::cpu() : layers.front().device(); }
};

// Compiled in the library.
extern template class StateVerbs<MambaState>;
extern template class StateVerbs<StackState>;

// The state of one layer after every step of a forward call, for going back to any of them: the
// tensors are [batch, time, channels, ...].
struct LayerSteps : StateTensors {
  // Shapes it for a call of `batch` x `time` steps; keeps its memory if the shape is already right.
  void prepare(const MambaState& like, std::int64_t batch, std::int64_t time);
  // state = the state after step t of every row. 0 <= t < time.
  void restore(std::int64_t t, MambaState& state, Stream& stream) const;
  // Throws, in the name of `where`, if restore() would.
  void check_restore(const char* where, std::int64_t t, const MambaState& state,
                     const Stream& stream) const;
};

// The ssm of a Mamba-2 layer as it is published, [batch, heads, head_dim, d_state]: a view of the
// same memory. One that does not fit `config` is an ArgumentError.
TensorView by_heads(Tensor& ssm, const LayerConfig& config);
ConstTensorView by_heads(const Tensor& ssm, const LayerConfig& config);

// Hugging Face and mamba_ssm keep the conv state one input wider, [batch, channels, d_conv], newest
// last; its oldest column is never used again.
Tensor to_wide_conv_state(const Tensor& conv);  // [.., d_conv - 1] -> [.., d_conv], oldest column 0
Tensor from_wide_conv_state(const Tensor& wide);  // [.., d_conv] -> [.., d_conv - 1]

}  // namespace mamba
