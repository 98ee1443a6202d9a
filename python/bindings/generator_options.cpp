// What is asked of a generator, in keyword arguments, and what comes of it.
#include <nanobind/stl/map.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include <mamba/error.hpp>

#include "models.hpp"

namespace mamba::python {

// ---- sampling ---------------------------------------------------------------------------------

SamplingOptions sampling_of(Keywords& given, SamplingOptions options) {
  given.take("temperature", options.temperature, "a number");
  given.take("top_k", options.top_k, "a whole number");
  given.take("top_p", options.top_p, "a number");
  given.take("min_p", options.min_p, "a number");
  given.take("repetition_penalty", options.repetition_penalty, "a number");
  given.take("seed", options.seed, "a whole number from 0 to 2^64 - 1");
  given.take("logit_bias", options.logit_bias, "a dict of numbers by token id");
  if (const nb::object allowed = given.take("allowed"); allowed.is_valid()) {
    options.allowed = ids_of(given.where(), "allowed", allowed);
  }
  return options;
}

nb::dict dict_of(const SamplingOptions& options) {
  nb::dict all;
  all["temperature"] = shortest(options.temperature);
  all["top_k"] = options.top_k;
  all["top_p"] = shortest(options.top_p);
  all["min_p"] = shortest(options.min_p);
  all["repetition_penalty"] = shortest(options.repetition_penalty);
  all["seed"] = options.seed;
  nb::dict bias;
  for (const auto& [id, added] : options.logit_bias) bias[nb::cast(id)] = shortest(added);
  all["logit_bias"] = bias;
  all["allowed"] = options.allowed;
  return all;
}

// ---- writing ----------------------------------------------------------------------------------

GenerateOptions generate_options_of(Keywords& given, std::int64_t max_tokens,
                                    const Tokenizer* tokenizer) {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  options.tokenizer = tokenizer;
  given.take("ignore_eos", options.ignore_eos, "True or False");
  if (const nb::object stop = given.take("stop"); stop.is_valid() && !stop.is_none()) {
    if (nb::isinstance<nb::str>(stop)) {
      options.stop = {nb::cast<std::string>(stop)};
    } else if (!nb::try_cast(stop, options.stop)) {
      given.refuse("stop", "text or a list of texts", stop);
    }
  }
  return options;
}

namespace {

nb::object callback_of(Keywords& given, const char* name) {
  nb::object callback = given.take(name);
  if (!callback.is_valid() || callback.is_none()) return {};
  if (PyCallable_Check(callback.ptr()) == 0) given.refuse(name, "a function", callback);
  return callback;
}

}  // namespace

Writing::Writing(HeldGenerator& held, Keywords& given, std::int64_t max_tokens,
                 std::shared_ptr<std::exception_ptr> ended)
    : options_(generate_options_of(given, max_tokens, held.text())),
      on_token_(callback_of(given, "on_token")),
      on_text_(callback_of(given, "on_text")),
      ended_(std::move(ended)) {
  if (const nb::object top = given.take("log_probs"); top.is_valid() && !top.is_none()) {
    std::int64_t count = 0;
    if (!nb::try_cast(top, count)) given.refuse("log_probs", "a whole number or None", top);
    options_.log_probs = count;
  }
  given.finish();
  // Whoever calls a generator, or asks for its state, within a callback of its own is refused.
  options_.callbacks_apart = true;
  options_.on_token = [this](std::int32_t token) { return after_token(token); };
  if (held.tokenizer || on_text_.is_valid()) {
    options_.on_text = [this](std::string_view text) { return after_text(text); };
  }
}

// The callbacks run without the GIL and take it. What a callback raises is the text's own error;
// what is meant for the process ends all texts of the call.
template <class F>
bool Writing::goes_on(F&& call) {
  try {
    const nb::object more = call();
    if (more.is_none()) return true;
    const int truth = PyObject_IsTrue(more.ptr());
    if (truth < 0) throw nb::python_error();
    return truth != 0;
  } catch (const nb::python_error& error) {
    if (error.matches(PyExc_Exception)) throw;
    *ended_ = std::current_exception();
    return false;
  }
}

bool Writing::after_token(std::int32_t token) {
  if (*ended_ || is_ending()) return false;
  const nb::gil_scoped_acquire gil;
  return goes_on([&]() -> nb::object {
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    return on_token_.is_valid() ? on_token_(token) : nb::none();
  });
}

bool Writing::after_text(std::string_view text) {
  text_ += text;
  if (*ended_ || is_ending() || !on_text_.is_valid()) return true;
  const nb::gil_scoped_acquire gil;
  return goes_on([&] { return on_text_(nb::str(text.data(), text.size())); });
}

void Writing::check_ended() const {
  if (*ended_) std::rethrow_exception(*ended_);
}

nb::object exception_of(const std::exception_ptr& error) {
  if (!error) return nb::none();
  try {
    std::rethrow_exception(error);
  } catch (const nb::python_error& raised) {
    return nb::borrow(raised.value());
  } catch (const Error& raised) {
    return nb::handle(python_error(raised))(raised.what());
  } catch (const std::exception& raised) {
    return nb::handle(PyExc_RuntimeError)(raised.what());
  }
}

namespace {

nb::object result_type(const char* name) {
  return nb::module_::import_("mamba_cpp._results").attr(name);
}

const char* name_of(StopReason reason) {
  switch (reason) {
    case StopReason::max_tokens:
      return "max_tokens";
    case StopReason::eos:
      return "eos";
    case StopReason::stop_string:
      return "stop_string";
    case StopReason::callback:
      return "callback";
    case StopReason::error:
      return "error";
  }
  return "unknown";
}

}  // namespace

nb::object reason_of(std::optional<StopReason> reason) {
  return reason ? nb::cast(name_of(*reason)) : nb::none();
}

nb::object log_probs_of(const LogProbs& odds) {
  nb::list top;
  for (const TokenLogProb& one : odds.top) top.append(nb::make_tuple(one.token, one.log_prob));
  return result_type("LogProbs")(odds.chosen, top);
}

nb::object Writing::result(const Generated& generated) const {
  nb::object odds = nb::none();
  if (options_.log_probs) {
    nb::list each;
    for (const LogProbs& one : generated.log_probs) each.append(log_probs_of(one));
    odds = each;
  }
  const nb::object text =
      options_.on_text ? nb::object(nb::str(text_.data(), text_.size())) : nb::none();
  return result_type("Generated")(generated.tokens, text, name_of(generated.reason), odds,
                                  exception_of(generated.error));
}

}  // namespace mamba::python
