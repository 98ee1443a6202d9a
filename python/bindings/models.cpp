// Language models, and what all bindings of models share.
#include "models.hpp"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <stdexcept>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/language_model.hpp>

namespace mamba::python {

// ---- numbers and keywords ---------------------------------------------------------------------

std::string text_of(nb::handle value) {
  std::string text = nb::cast<std::string>(nb::repr(value));
  constexpr std::size_t most = 80;  // of a long list its beginning says enough
  if (text.size() > most) text = text.substr(0, most) + "...";
  return text;
}

double shortest(float value) {
  char digits[64];
  const auto written = std::to_chars(digits, digits + sizeof digits, value);
  double read = value;
  std::from_chars(digits, written.ptr, read);
  return read;
}

namespace {

// A NumPy array of i32 in a row, whatever `values` is; its dimensions must be one of `ranks`.
nb::object i32_array(const char* where, const char* name, nb::handle values,
                     std::initializer_list<int> ranks, const char* expected) {
  const auto refuse = [&](const std::string& got) {
    throw ArgumentError(where, name, expected, got);
  };
  const nb::module_ numpy = nb::module_::import_("numpy");
  nb::object array;
  try {
    array = numpy.attr("asarray")(values);
  } catch (nb::python_error&) {  // rows of several lengths
    refuse(text_of(values));
  }
  const int rank = nb::cast<int>(array.attr("ndim"));
  const auto kind = nb::cast<std::string>(array.attr("dtype").attr("kind"));
  const bool empty = nb::cast<std::size_t>(array.attr("size")) == 0;
  if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end() ||
      (kind != "i" && kind != "u" && kind != "b" && !empty)) {
    refuse(text_of(values));
  }
  if (!empty) {
    const nb::object low = array.attr("min")();
    const nb::object high = array.attr("max")();
    for (const nb::object& one : {low, high}) {
      std::int32_t number = 0;
      if (!nb::try_cast(nb::int_(one), number)) {
        refuse(nb::cast<std::string>(nb::str(nb::int_(one))));
      }
    }
  }
  return numpy.attr("ascontiguousarray")(array, numpy.attr("int32"));
}

const std::int32_t* numbers_in(const nb::object& array, nb::ndarray<const std::int32_t>& seen) {
  seen = nb::cast<nb::ndarray<const std::int32_t>>(array);
  return seen.data();
}

}  // namespace

Ids ids_of(const char* where, const char* name, nb::handle ids) {
  const nb::object array = i32_array(where, name, ids, {1}, "a list of whole numbers of 32 bits");
  nb::ndarray<const std::int32_t> seen;
  const std::int32_t* first = numbers_in(array, seen);
  return Ids(first, first + seen.size());
}

Tensor id_rows_of(const char* where, const char* name, nb::handle ids) {
  const nb::object array =
      i32_array(where, name, ids, {1, 2}, "whole numbers of 32 bits, [batch, time] or [time]");
  nb::ndarray<const std::int32_t> seen;
  const std::int32_t* first = numbers_in(array, seen);
  const std::size_t rank = seen.ndim();
  const auto rows = static_cast<std::int64_t>(rank == 1 ? 1 : seen.shape(0));
  const auto columns = static_cast<std::int64_t>(seen.shape(rank - 1));
  return Tensor::from(Ids(first, first + seen.size()), {rows, columns});
}

nb::object Keywords::take(const char* name) {
  if (!left_.contains(name)) return {};
  nb::object value = left_[name];
  nb::del(left_[name]);
  return value;
}

void Keywords::finish() const {
  for (const auto [name, value] : left_) {
    const std::string text =
        std::string(where_) + ": unexpected argument " + nb::cast<std::string>(nb::str(name));
    throw nb::type_error(text.c_str());
  }
}

void check_signals() {
  if (is_ending()) throw std::runtime_error("mamba_cpp: Python ends");
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

// ---- language models --------------------------------------------------------------------------

namespace {

constexpr const char* forward_doc =
    "Reads `ids` [batch, time] (or [time]: one row) after what `state` has seen, which goes on by "
    "`time` tokens.\n\n"
    "logits: \"all\" gives f32 [batch, time, vocab_size], \"last\" [batch, vocab_size] of the last "
    "position, \"none\" None. steps: receives the states after every token. threads: on the CPU, "
    "0: one for each core. ids out of range are a ValueError before any work.";

// An array like NumPy's on the CPU, one that PyTorch takes (torch.from_dlpack) on CUDA.
nb::object forward(const LanguageModel& model, nb::handle ids, StackState& state,
                   const std::string& logits, StackSteps* steps, int threads) {
  constexpr const char* where = "LanguageModel.forward";
  Tensor read = id_rows_of(where, "ids", ids);
  const std::int64_t vocab = model.config().vocab_size;
  for (const std::int32_t id : read.to_vector<std::int32_t>()) {
    check::range(where, "ids", id, 0, vocab - 1);
  }
  const bool all = logits == "all";
  const bool last = logits == "last";
  if (!all && !last && logits != "none") {
    throw ArgumentError(where, "logits", "\"all\", \"last\" or \"none\"", '"' + logits + '"');
  }
  Tensor result;
  {
    const nb::gil_scoped_release release;
    const Device device = model.device();
    if (all) result = Tensor({read.dim(0), read.dim(1), vocab}, DType::f32, device);
    if (last) result = Tensor({read.dim(0), vocab}, DType::f32, device);
    if (device.is_cuda()) read = read.to(device);
    const Logits wanted = all ? Logits::all(result) : last ? Logits::last(result) : Logits::none();
    LanguageModelOptions options;
    options.steps = steps;
    Stream* const stream =
        device.is_cpu() ? &stream_for(device, nullptr, threads) : &default_stream(device);
    synchronize(device);
    model.forward(read, state, wanted, *stream, options);
    stream->synchronize();
  }
  return shared_array(std::move(result));
}

nb::object logits(const LanguageModel& model, nb::handle ids, std::optional<StackState*> state) {
  if (state) return forward(model, ids, **state, "all", nullptr, 0);
  StackState fresh = model.make_state(id_rows_of("LanguageModel.logits", "ids", ids).dim(0));
  return forward(model, ids, fresh, "all", nullptr, 0);
}

nb::dict dict_of(const LanguageModelConfig& config) {
  const LayerConfig& layer = config.layer;
  nb::dict all;
  all["mixer"] = layer.mixer == MixerKind::mamba1 ? "mamba1" : "mamba2";
  all["d_model"] = layer.d_model;
  all["n_layer"] = config.n_layer;
  all["vocab_size"] = config.vocab_size;
  all["vocab_rows"] = config.vocab_rows;
  all["tie_embeddings"] = config.tie_embeddings;
  all["norm_epsilon"] = shortest(config.norm_epsilon);
  all["eos_token_ids"] = config.eos_token_ids;
  all["d_state"] = layer.d_state;
  all["d_conv"] = layer.d_conv;
  all["expand"] = layer.expand;
  all["d_inner"] = layer.d_inner;
  all["use_bias"] = layer.use_bias;
  all["use_conv_bias"] = layer.use_conv_bias;
  if (layer.mixer == MixerKind::mamba1) {
    all["dt_rank"] = layer.dt_rank;
  } else {
    all["head_dim"] = layer.head_dim;
    all["heads"] = layer.heads();
    all["groups"] = layer.groups;
  }
  return all;
}

}  // namespace

void bind_language_model(nb::module_& m) {
  nb::class_<LanguageModel>(
      m, "LanguageModel",
      "A Mamba language model: embedding, layers, head. Constant once made: any number of threads "
      "may use one at once, each with a state of its own.")
      .def_static(
          "load",
          [](const std::filesystem::path& folder, nb::handle dtype, nb::handle device) {
            std::optional<DType> wanted;
            if (!dtype.is_none()) wanted = dtype_of(dtype);
            const Device where = device_of(device);
            const nb::gil_scoped_release release;
            return LanguageModel::load(folder.string(), wanted, where);
          },
          nb::arg("folder"), nb::arg("dtype") = nb::none(), nb::arg("device") = "cpu",
          nb::sig("def load(folder: str | os.PathLike, dtype: object | None = None, device: "
                  "object = 'cpu') -> LanguageModel"),
          "A folder as published: config.json and model.safetensors, or its shards.\n\n"
          "dtype: of matrices and activations, \"f32\", \"bf16\" or \"f16\"; None: as in the file. "
          "device: \"cpu\", \"cuda\" or \"cuda:N\". ValueError where a file is not of the promised "
          "form, OSError where the system will not read it.")
      .def(
          "save",
          [](const LanguageModel& model, const std::filesystem::path& folder) {
            const nb::gil_scoped_release release;
            model.save(folder.string());
          },
          nb::arg("folder"), "Writes such a folder, with the names of Hugging Face.")
      .def_prop_ro(
          "config", [](const LanguageModel& model) { return dict_of(model.config()); },
          "Sizes and options as a dict: d_model, n_layer, vocab_size, eos_token_ids, ...")
      .def_prop_ro("dtype",
                   [](const LanguageModel& model) { return mamba::name_of(model.dtype()); })
      .def_prop_ro("device", [](const LanguageModel& model) { return model.device().name(); })
      .def_prop_ro("parameter_count", &LanguageModel::parameter_count)
      .def("fingerprint", &LanguageModel::fingerprint, nb::call_guard<nb::gil_scoped_release>(),
           "32 hexadecimal digits that tell two models apart by configuration and weights.")
      .def("make_state", &LanguageModel::make_state, nb::arg("batch") = 1,
           "A state that has seen nothing yet, for `batch` rows.")
      .def("forward", &forward, nb::arg("ids"), nb::arg("state"), nb::arg("logits") = "all",
           nb::arg("steps") = nb::none(), nb::arg("threads") = 0, forward_doc)
      .def("logits", &logits, nb::arg("ids"), nb::arg("state") = nb::none(),
           "f32 [batch, time, vocab_size] after each of `ids` [batch, time]; a state goes on by "
           "`time` tokens, without one it is as if nothing had been read before.")
      .def("__repr__", [](const LanguageModel& model) {
        const LanguageModelConfig& config = model.config();
        return "<mamba_cpp.LanguageModel: " + std::to_string(config.n_layer) + " layers of " +
               std::string(mamba::name_of(config.layer.mixer)) + ", d_model " +
               std::to_string(config.layer.d_model) + ", " + mamba::name_of(model.dtype()) +
               " on " + model.device().name() + ">";
      });
}

void bind_models(nb::module_& m) {
  bind_states(m);
  bind_state_files(m);
  bind_language_model(m);
  bind_text(m);
  bind_snapshots(m);
  bind_ending();
  bind_generators(m);
  bind_generator_pools(m);
  bind_generator_helpers(m);
}

}  // namespace mamba::python
