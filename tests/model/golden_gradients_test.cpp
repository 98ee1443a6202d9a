// Gradients through a model and its state against PyTorch's autograd in float64:
// tests/golden/README.md says how they were made.
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "model/slopes.hpp"

namespace mamba {
namespace {

using testing::devices;
using testing::golden_folder;
using testing::gradient_bound;
using testing::relative_error;
using testing::values;

class GoldenGradients : public ::testing::TestWithParam<std::string> {
 protected:
  GoldenGradients() : file_(golden_folder(GetParam()) + "/gradients.safetensors") {}

  Tensor read(const std::string& name) const { return file_.read(file_.entry(name)); }
  // Layer i of a tensor [layers, ...].
  Tensor of_layer(const std::string& name, std::size_t i) const {
    const Tensor all = read(name);
    Tensor one({all.dim(1), all.dim(2), all.dim(3)}, DType::f32);
    const auto layer = static_cast<std::int64_t>(i);
    copy(all.view().rows(layer, 1).reshape(one.shape()), one, default_stream());
    return one;
  }
  StackState state(const LanguageModel& model, const std::string& conv, const std::string& ssm) {
    StackState made = model.make_state(2);
    for (std::size_t i = 0; i < made.layers.size(); ++i) {
      made.layers[i].conv = of_layer(conv, i).to(model.device(), model.dtype());
      made.layers[i].ssm = of_layer(ssm, i).to(model.device());
    }
    return made;
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }

 private:
  SafetensorsFile file_;
};

TEST_P(GoldenGradients, OfEveryWeightAndBothStates) {
  for (Device device : devices()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const bool recompute : {false, true}) {
        SCOPED_TRACE(device.name() + " " + name_of(dtype) + (recompute ? " recompute" : ""));
        const LanguageModel model = LanguageModel::load(golden_folder(GetParam()), dtype, device);
        const Tensor ids = read("ids").to(device), reset = read("reset").to(device);
        const Tensor dlogits = read("dlogits").to(device, dtype);
        StackState carried = state(model, "conv", "ssm");
        StackState dstate = state(model, "dconv_final", "dssm_final");
        Tensor logits(dlogits.shape(), DType::f32, device);
        LanguageModelWeights gradients = zero_gradients(model.config(), device);
        LanguageModelTape tape;
        tape.stack.recompute = recompute;
        LanguageModelOptions options;
        options.tape = &tape;
        options.reset = reset;
        Stream& stream = default_stream(device);
        model.forward(ids, carried, Logits::all(logits), stream, options);
        model.backward(tape, dlogits, &dstate, gradients, stream);
        stream.synchronize();
        // Weights and inputs are rounded to bf16, which is not in the golden: one more rounding for
        // each of the stages that gradient_bound counts.
        const double layers = static_cast<double>(model.stack().size());
        const double bound = (dtype == DType::f32 ? 1 : 2) * layers * gradient_bound(dtype);
        for (std::size_t i = 0; i < dstate.layers.size(); ++i) {
          EXPECT_LE(relative_error(values(dstate.layers[i].conv), values(of_layer("dconv", i))),
                    bound)
              << "dconv " << i;
          EXPECT_LE(relative_error(values(dstate.layers[i].ssm), values(of_layer("dssm", i))),
                    bound)
              << "dssm " << i;
        }
        LanguageModelWeights::each(
            gradients, model.config(), DType::f32,
            [&](const std::string& name, const Tensor& tensor, const Shape&, DType) {
              ASSERT_TRUE(has("d " + name)) << name;
              EXPECT_LE(relative_error(values(tensor), values(read("d " + name))), bound) << name;
            });
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenGradients,
                         ::testing::Values("base", "biased", "wide", "falcon", "one", "gated"),
                         [](const auto& given) { return given.param; });

}  // namespace
}  // namespace mamba
