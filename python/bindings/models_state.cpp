// States as Python objects: the library's verbs, and their tensors as arrays that share memory.
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include <mamba/stack.hpp>
#include <mamba/state.hpp>

#include "models.hpp"

namespace mamba::python {

namespace {

template <class State>
void expect_rows(const char* where, const Ids& mask, const State& state) {
  if (static_cast<std::int64_t>(mask.size()) == state.batch()) return;
  throw ArgumentError(where, "mask", std::to_string(state.batch()) + " values, one for each row",
                      std::to_string(mask.size()));
}

template <class State>
State to(const State& state, nb::handle device, nb::handle dtype) {
  const Device where = device.is_none() ? state.device() : device_of(device);
  const DType as = dtype.is_none() ? state.dtype() : dtype_of(dtype);
  const nb::gil_scoped_release release;
  return state.to(where, as);
}

template <class State>
void reset(State& state, nb::handle mask) {
  if (mask.is_none()) return state.reset();
  const Ids rows = ids_of("reset", "mask", mask);
  expect_rows("reset", rows, state);
  state.reset(Tensor::from(rows).to(state.device()));
}

// The verbs that MambaState and StackState have in common.
template <class State>
void bind_verbs(nb::class_<State>& c) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  c.def_prop_ro("batch", &State::batch, "How many rows.")
      .def_prop_ro("nbytes", &State::bytes)
      .def_prop_ro("dtype", [](const State& state) { return mamba::name_of(state.dtype()); })
      .def_prop_ro("device", [](const State& state) { return state.device().name(); })
      .def("clone", nb::overload_cast<>(&State::clone, nb::const_), Release(),
           "An independent copy.")
      .def("__copy__", nb::overload_cast<>(&State::clone, nb::const_), Release())
      .def(
          "__deepcopy__", [](const State& state, nb::handle) { return state.clone(); },
          nb::arg("memo"))
      .def("copy_from", nb::overload_cast<const State&>(&State::copy_from), nb::arg("other"),
           Release(), "Puts a copy back. Same shapes, dtypes and device.")
      .def("reset", &reset<State>, nb::arg("mask") = nb::none(),
           "Forgets everything, or the rows b with mask[b] != 0.")
      .def("to", &to<State>, nb::arg("device") = nb::none(), nb::arg("dtype") = nb::none(),
           "A copy on another device; `dtype` converts what has the model's (ssm is always f32).")
      .def(
          "gather",
          [](const State& state, nb::handle rows) {
            return state.gather(ids_of("gather", "rows", rows));
          },
          nb::arg("rows"), "A new state whose row i is this state's row rows[i].")
      .def(
          "scatter",
          [](State& state, const State& source, nb::handle rows) {
            state.scatter(source, ids_of("scatter", "rows", rows));
          },
          nb::arg("source"), nb::arg("rows"),
          "Row rows[i] of this state becomes row i of `source`; the others stay.")
      .def("repeat", nb::overload_cast<std::int64_t>(&State::repeat, nb::const_), nb::arg("k"),
           Release(), "Each row k times, one after the other: [a, b] becomes [a, a, b, b].")
      .def_static(
          "concat",
          [](const std::vector<const State*>& parts) {
            const nb::gil_scoped_release release;
            return State::concat(parts);
          },
          nb::arg("parts"), "The rows of all parts, in order.")
      .def("__getstate__", [](const State& state) { return bytes_of(save(state)); });
}

void bind_layer_state(nb::module_& m) {
  nb::class_<MambaState> c(m, "MambaState",
                           "What one layer remembers, for each row. Zero means nothing seen yet.");
  bind_verbs(c);
  c.def_prop_ro(
       "conv",
       [](nb::handle_t<MambaState> self) {
         return shared_array(nb::cast<MambaState&>(self).conv.view(), self);
       },
       "[batch, conv channels, d_conv - 1] of the model's dtype: the last inputs of the "
       "convolution, oldest first. Shares memory.")
      .def_prop_ro(
          "ssm",
          [](nb::handle_t<MambaState> self) {
            return shared_array(nb::cast<MambaState&>(self).ssm.view(), self);
          },
          "f32 [batch, d_inner, d_state]: h of the recurrence. Shares memory.")
      .def("__setstate__",
           [](MambaState& state, const nb::bytes& bytes) {
             SavedState saved = load_state(ByteView(bytes.c_str(), bytes.size()));
             new (&state) MambaState(std::move(saved.state.layers.at(0)));
           })
      .def("__repr__", [](const MambaState& state) {
        return "<mamba_cpp.MambaState: batch " + std::to_string(state.batch()) + ", " +
               mamba::name_of(state.dtype()) + " on " + state.device().name() + ">";
      });
}

void bind_stack_state(nb::module_& m) {
  nb::class_<StackState> c(
      m, "StackState",
      "What a model remembers, layer by layer. It is copied by clone(), copy.copy and "
      "copy.deepcopy, and can be pickled.");
  bind_verbs(c);
  c.def_prop_ro(
       "layers",
       [](nb::handle_t<StackState> self) {
         nb::list layers;
         for (MambaState& layer : nb::cast<StackState&>(self).layers) {
           layers.append(nb::cast(&layer, nb::rv_policy::reference_internal, self));
         }
         return layers;
       },
       nb::sig("def layers(self) -> list[MambaState]"),
       "The states of the layers. They are parts of this one and share its memory.")
      .def("__len__", [](const StackState& state) { return state.layers.size(); })
      .def("__setstate__",
           [](StackState& state, const nb::bytes& bytes) {
             new (&state) StackState(load_state(ByteView(bytes.c_str(), bytes.size())).state);
           })
      .def("__repr__", [](const StackState& state) {
        return "<mamba_cpp.StackState: " + std::to_string(state.layers.size()) + " layers, batch " +
               std::to_string(state.batch()) + ", " + mamba::name_of(state.dtype()) + " on " +
               state.device().name() + ">";
      });
}

void restore(const StackSteps& steps, std::int64_t t, StackState& state) {
  const nb::gil_scoped_release release;
  Stream& stream = default_stream(state.device());
  synchronize(state.device());
  steps.restore(t, state, stream);
  stream.synchronize();
}

}  // namespace

nb::object shared_array(const TensorView& view, nb::handle owner) {
  const bool numpy = view.device().is_cpu() && view.dtype() != DType::bf16;
  return to_array(view, owner, numpy ? Framework::numpy : Framework::dlpack);
}

nb::object shared_array(Tensor tensor) {
  const bool numpy = tensor.device().is_cpu() && tensor.dtype() != DType::bf16;
  return to_array(std::move(tensor), numpy ? Framework::numpy : Framework::dlpack);
}

void bind_states(nb::module_& m) {
  bind_layer_state(m);
  bind_stack_state(m);
  nb::class_<StackSteps>(
      m, "StackSteps",
      "The states after every token of one call of LanguageModel.forward, for going back to any.")
      .def(nb::init<>())
      .def("restore", &restore, nb::arg("t"), nb::arg("state"),
           "`state` becomes the state after token t of that call, 0 <= t < time.");
}

}  // namespace mamba::python
