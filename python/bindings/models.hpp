// What the bindings of models, states and generators share: ids, keyword arguments, and whose turn
// it is to use a generator.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <mamba/generator.hpp>
#include <mamba/state_file.hpp>

#include "bind.hpp"

// They hold vectors of what is moved and never copied, which the standard library's trait
// overlooks.
namespace nanobind::detail {
template <>
struct is_copy_constructible<mamba::StackState> : std::false_type {};
template <>
struct is_copy_constructible<mamba::StackSteps> : std::false_type {};
}  // namespace nanobind::detail

namespace mamba::python {

void bind_language_model(nb::module_& m);
void bind_states(nb::module_& m);
void bind_state_files(nb::module_& m);
void bind_text(nb::module_& m);
void bind_snapshots(nb::module_& m);
void bind_generators(nb::module_& m);
void bind_generator_pools(nb::module_& m);
void bind_generator_helpers(nb::module_& m);

using Ids = std::vector<std::int32_t>;

// Whole numbers of 32 bits from a list, or from an array of any integers or booleans with one
// dimension. Anything else is an ArgumentError that begins with `where: name`.
Ids ids_of(const char* where, const char* name, nb::handle ids);
// The same with two dimensions, [batch, time], or one, which is one row. On the CPU.
Tensor id_rows_of(const char* where, const char* name, nb::handle ids);

// The UTF-8 of a str, or bytes as they are; they live as long as `text`.
std::string_view bytes_in(const char* where, nb::handle text);
// `value` in Python's words, for errors.
std::string text_of(nb::handle value);

// The double that prints as the float does: 0.7, where the float's own value is 0.699999988.
double shortest(float value);

// Keyword arguments, taken one by one.
class Keywords {
 public:
  Keywords(const char* where, nb::handle given)
      : where_(where), left_(nb::cast<nb::dict>(given.attr("copy")())) {}

  // Leaves `value` where the argument is absent. What is of another type is an ArgumentError.
  template <class T>
  void take(const char* name, T& value, const char* expected) {
    const nb::object given = take(name);
    if (given.is_valid() && !nb::try_cast(given, value)) refuse(name, expected, given);
  }
  // Not valid where the argument is absent.
  nb::object take(const char* name);
  // A TypeError that names an argument which nobody took.
  void finish() const;
  const char* where() const { return where_; }
  [[noreturn]] void refuse(const char* name, const char* expected, nb::handle got) const {
    throw ArgumentError(where_, name, expected, text_of(got));
  }

 private:
  const char* where_;
  nb::dict left_;
};

// `options` changed by those keyword arguments that are there.
SamplingOptions sampling_of(Keywords& given, SamplingOptions options = {});
nb::dict dict_of(const SamplingOptions& options);

nb::bytes bytes_of(const Bytes& bytes);
// An array of the view's memory, which `owner` keeps alive: NumPy's where NumPy can have it, else
// (bf16, CUDA) one that others take by DLPack, as torch.from_dlpack does. The second owns it.
nb::object shared_array(const TensorView& view, nb::handle owner);
nb::object shared_array(Tensor tensor);

// A stream, and whose turn it is to use what stands on it: generators that share a stream count as
// one.
class Line {
 public:
  Line(Device device, int threads) : stream_(device, threads) {}
  Stream& stream() { return stream_; }
  // Whether a call of this thread is under way: this is then one of its callbacks.
  bool mine() const { return owner_.load() == std::this_thread::get_id(); }

 private:
  friend class Turn;
  Stream stream_;
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{std::thread::id()};
};

// Whether Python ends, and no other thread than the one that ends it shall go on.
bool is_ending();
void bind_ending();

// While this lives, the GIL is released and the lines are this thread's alone: a call from another
// thread waits. One from a callback of the call that is under way would wait forever, and is a
// RuntimeError.
class Turn {
 public:
  Turn(const char* where, std::vector<Line*> lines);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::vector<Line*> lines_;
  std::optional<nb::gil_scoped_release> released_;
};

// A generator and what it needs while it lives.
struct HeldGenerator {
  std::shared_ptr<LanguageModel> model;
  std::optional<Tokenizer> tokenizer;
  std::shared_ptr<Line> line;
  std::optional<Generator> generator;

  HeldGenerator(std::shared_ptr<LanguageModel> of, std::optional<Tokenizer> with,
                std::shared_ptr<Line> on)
      : model(std::move(of)), tokenizer(std::move(with)), line(std::move(on)) {}
  ~HeldGenerator();  // leaves its pool, when it is its turn
  HeldGenerator(const HeldGenerator&) = delete;
  HeldGenerator& operator=(const HeldGenerator&) = delete;

  const Tokenizer* text() const { return tokenizer ? &*tokenizer : nullptr; }
  // The ids of a prompt, which is text or ids. Without `special_tokens` those that stand before a
  // text are there where nothing was read yet.
  Ids prompt(const char* where, nb::handle prompt, std::optional<bool> special_tokens) const;
};

// Throws what a signal's handler raised: KeyboardInterrupt after Ctrl-C; and where Python ends. The
// GIL may be released.
void check_signals();

// A text that is being written, as Python asked for it: the library's options with Python's
// callbacks in them, between which signals are looked for.
class Writing {
 public:
  // Texts that are written together share `ended`.
  Writing(HeldGenerator& held, Keywords& given, std::int64_t max_tokens,
          std::shared_ptr<std::exception_ptr> ended = std::make_shared<std::exception_ptr>());
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;

  // Its callbacks point to this.
  const GenerateOptions& options() const { return options_; }
  // Throws what is no error of the text's but ends the whole call: KeyboardInterrupt, SystemExit.
  void check_ended() const;
  nb::object result(const Generated& generated) const;

 private:
  bool after_token(std::int32_t token);
  bool after_text(std::string_view text);
  template <class F>
  bool goes_on(F&& call);

  GenerateOptions options_;
  nb::object on_token_;
  nb::object on_text_;
  std::shared_ptr<std::exception_ptr> ended_;
  std::string text_;
};

// What `writer`, a Generator or a Speculation on these lines, writes with Python's `options`.
template <class Writer>
nb::object written(const char* where, Writer& writer, HeldGenerator& held, std::vector<Line*> lines,
                   std::int64_t max_tokens, const nb::kwargs& options) {
  Keywords given(where, options);
  Writing writing(held, given, max_tokens);
  Generated generated;
  {
    const Turn turn(where, std::move(lines));
    generated = writer.generate(writing.options());
  }
  writing.check_ended();
  return writing.result(generated);
}

// The options of generate() that are not callbacks.
GenerateOptions generate_options_of(Keywords& given, std::int64_t max_tokens,
                                    const Tokenizer* tokenizer);
// As Python would have raised it; None where there is none.
nb::object exception_of(const std::exception_ptr& error);
nb::object reason_of(std::optional<StopReason> reason);
nb::object log_probs_of(const LogProbs& odds);

// What a generator goes on from: a snapshot, or the path of a file.
struct Source {
  const GeneratorSnapshot* snapshot = nullptr;
  std::string path;
  explicit Source(nb::handle source);
};

}  // namespace mamba::python
