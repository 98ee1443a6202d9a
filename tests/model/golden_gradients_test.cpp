// Gradients through a model and its state against PyTorch's autograd in float64:
// tests/golden/README.md says how they were made.
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "model/slopes.hpp"

namespace mamba {
namespace {

// A folder of tests/golden with gradients.
struct Trained : std::string {
  using std::string::string;
};

}  // namespace

template <>
struct testing::Every<Trained> {
  static std::vector<Trained> all() {
    return {"base",          "biased",          "wide",       "falcon",
            "one",           "gated",           "mamba2_one", "mamba2_groups",
            "mamba2_limits", "mamba2_original", "mamba2_gate"};
  }
  static std::string name(const Trained& folder) { return folder; }
};

namespace {

using testing::golden_folder;
using testing::gradient_bound;
using testing::relative_error;
using testing::values;

class GradientsFile {
 public:
  explicit GradientsFile(const std::string& folder)
      : file_(golden_folder(folder) + "/gradients.safetensors") {}

  Tensor read(const std::string& name) const { return file_.read(file_.entry(name)); }
  // Layer i of a tensor [layers, ...].
  Tensor of_layer(const std::string& name, std::size_t i) const {
    const Tensor all = read(name);
    Tensor one({all.dim(1), all.dim(2), all.dim(3)}, DType::f32);
    const auto layer = static_cast<std::int64_t>(i);
    copy(all.view().rows(layer, 1).reshape(one.shape()), one, default_stream());
    return one;
  }
  StackState state(const LanguageModel& model, const std::string& conv,
                   const std::string& ssm) const {
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

TEST_EACH(GoldenGradients, OfEveryWeightAndBothStates, Trained folder, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const GradientsFile golden(folder);
  for (const bool recompute : {false, true}) {
    SCOPED_TRACE(recompute ? "recompute" : "all kept");
    const LanguageModel model = LanguageModel::load(golden_folder(folder), dtype, device);
    const Tensor ids = golden.read("ids").to(device), reset = golden.read("reset").to(device);
    const Tensor dlogits = golden.read("dlogits").to(device, dtype);
    StackState carried = golden.state(model, "conv", "ssm");
    StackState dstate = golden.state(model, "dconv_final", "dssm_final");
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
      EXPECT_LE(relative_error(values(dstate.layers[i].conv), values(golden.of_layer("dconv", i))),
                bound)
          << "dconv " << i;
      EXPECT_LE(relative_error(values(dstate.layers[i].ssm), values(golden.of_layer("dssm", i))),
                bound)
          << "dssm " << i;
    }
    LanguageModelWeights::each(
        gradients, model.config(), DType::f32,
        [&](const std::string& name, const Tensor& tensor, const Shape&, DType) {
          ASSERT_TRUE(golden.has("d " + name)) << name;
          EXPECT_LE(relative_error(values(tensor), values(golden.read("d " + name))), bound)
              << name;
        });
  }
}

}  // namespace
}  // namespace mamba
