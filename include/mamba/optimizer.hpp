// AdamW over the weights of a layer, a stack or a model, and the usual schedule of its rate.
//
//   LanguageModelWeights gradients = zero_gradients(model.config(), device);
//   AdamW optimizer(parameters(model, gradients));
//   ...  model.backward(tape, dlogits, &dstate, gradients, stream);
//   optimizer.step(warmup_cosine(optimizer.steps() + 1, 100, 1000, 3e-3f, 3e-4f), stream);
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>
#include <mamba/train_ops.hpp>

namespace MAMBA_EXPORT mamba {

// One weight that is trained. Views: what they show must stay where it is.
struct Parameter {
  std::string name;
  TensorView weight;         // dense, any storage dtype
  ConstTensorView gradient;  // dense f32, the same shape
  bool decay = true;
};

// Every weight whose gradient is there, by its published name. Matrices decay; A_log, D, dt bias,
// norms, biases and the convolution (it has a row of few weights per channel) do not.
std::vector<Parameter> parameters(Layer& layer, const LayerWeights& gradients);
std::vector<Parameter> parameters(Stack& stack, const StackWeights& gradients);
std::vector<Parameter> parameters(LanguageModel& model, const LanguageModelWeights& gradients);
// Not of gradients that are gone at the semicolon.
std::vector<Parameter> parameters(Layer& layer, const LayerWeights&& gradients) = delete;
std::vector<Parameter> parameters(Stack& stack, const StackWeights&& gradients) = delete;
std::vector<Parameter> parameters(LanguageModel& model,
                                  const LanguageModelWeights&& gradients) = delete;

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0.1f;  // decoupled, of the parameters that decay
  float max_norm = 1;         // of all gradients together; 0: not clipped
};

// What the gradient of the loss is multiplied by where it is f16, so that small gradients do not
// fall below its smallest step (Micikevicius et al. 2018, arXiv:1710.03740): halved after a step
// whose gradients were not finite, doubled after `patience` steps in a row whose were. Powers of
// two, so that nothing is rounded.
//
//   loss.run(logits, targets, {counted, dlogits, scale.value}, stream);
//   model.backward(tape, dlogits, nullptr, gradients, stream);
//   optimizer.step(rate, stream, scale.value);
//   optimizer.update_loss_scale(scale, stream);
struct LossScale {
  static constexpr float smallest = 1, largest = 16777216;
  static constexpr std::int64_t patience = 2000;

  float value = 65536;
  std::int64_t good_steps = 0;  // since it changed

  void update(bool finite);
};

// Moments are f32. A weight in 16 bits has an f32 master copy here, which is what learns; the
// weight is the master rounded.
class AdamW {
 public:
  // Names must differ; shapes, dtypes and devices are checked (ArgumentError).
  explicit AdamW(std::vector<Parameter> parameters, const AdamWOptions& options = {});

  // One step with the gradients as they are, which carry loss_scale: it is divided out in f32. If
  // one of them is not finite nothing is changed, as the device finds by itself: see
  // gradient_norm().
  void step(float learning_rate, Stream& stream, float loss_scale = 1);
  // The steps that changed something. CUDA queues a step and does not wait for it, so a step whose
  // gradients were not finite counts until gradient_norm() or update_loss_scale() has found out.
  std::int64_t steps() const { return steps_; }
  const AdamWOptions& options() const { return options_; }

  // Updates the loss scale after the last step. Returns false if that step's gradients were not
  // finite; the step has then changed nothing and does not count. Waits for the stream.
  bool update_loss_scale(LossScale& scale, Stream& stream);

  // Of the last step's gradients, without loss scale and before they were clipped. Waits for the
  // stream. Not finite: that step changed nothing and does not count, and first_not_finite() says
  // whose gradient it was.
  float gradient_norm(Stream& stream);
  // The first parameter whose gradient holds a NaN or an infinity; empty if none does. Waits.
  std::string first_not_finite(Stream& stream) const;

  // f(name, tensor) for the weights ("weight.NAME"), masters ("master.NAME") and moments ("m.NAME",
  // "v.NAME"), for a checkpoint.
  void each_tensor(const std::function<void(const std::string&, ConstTensorView)>& f) const;
  // The same to be written, and the count of steps that belongs to it.
  void each_tensor(const std::function<void(const std::string&, TensorView)>& f);
  void set_steps(std::int64_t steps);

 private:
  struct Slot {
    Parameter parameter;
    Tensor master;  // absent: the weight is f32 itself
    Tensor m, v;
  };

  void count(float squares);
  void check_made(const char* where) const;

  std::vector<Slot> slots_;
  std::vector<SumSquares> sums_;    // of every gradient
  std::vector<AdamWStep> updates_;  // of every weight; what differs from step to step is set then
  AdamWOptions options_;
  Tensor squares_;  // [1] f32
  std::int64_t steps_ = 0;
  bool last_counts_ = false;  // the last step is one of steps_
  float loss_scale_ = 1;      // of the last step
};

// Linear from 0 to `peak` over the first `warmup` steps (step counts from 1), then half a cosine
// down to `last` at step `total`, and `last` from there on.
float warmup_cosine(std::int64_t step, std::int64_t warmup, std::int64_t total, float peak,
                    float last);

}  // namespace mamba
