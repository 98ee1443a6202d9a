// Generators: a text being written.
#include "models.hpp"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/generator.hpp>

namespace mamba::python {

namespace {

using Path = std::filesystem::path;
using Model = std::shared_ptr<LanguageModel>;
using Held = HeldGenerator;

constexpr const char* class_doc =
    "A text being written: model, memory, random numbers and history in one value that can be "
    "forked, saved and gone on with in another process as if it had never stopped.\n\n"
    "tokenizer: for text in and out; ids need none. threads: of the CPU, 0: one for each core. "
    "temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 limit nothing; "
    "logit_bias: {id: number}, added to the logits; allowed: no other ids are chosen.\n\n"
    "One thread uses it at a time; a call from another waits. Values out of range are ValueErrors.";

void make(Held* self, Model model, std::optional<Tokenizer> tokenizer, int threads,
          const nb::kwargs& options) {
  Keywords given("Generator", options);
  const SamplingOptions sampling = sampling_of(given);
  given.finish();
  auto line = std::make_shared<Line>(model->device(), threads);
  new (self) Held(std::move(model), std::move(tokenizer), std::move(line));
  try {
    const Turn turn("Generator", {self->line.get()});
    self->generator.emplace(*self->model, sampling, self->line->stream());
  } catch (...) {
    self->~Held();
    throw;
  }
}

Held* restore(nb::handle source, Model model, std::optional<Tokenizer> tokenizer, int threads) {
  constexpr const char* where = "Generator.restore";
  auto held = std::make_unique<Held>(model, std::move(tokenizer),
                                     std::make_shared<Line>(model->device(), threads));
  const Source from(source);
  {
    const Turn turn(where, {held->line.get()});
    Stream& stream = held->line->stream();
    held->generator.emplace(from.snapshot != nullptr
                                ? Generator(*model, *from.snapshot, stream)
                                : Generator::restore(from.path, *model, stream));
  }
  return held.release();
}

// ---- reading and writing ----------------------------------------------------------------------

std::int64_t read(Held& self, nb::handle prompt, std::optional<bool> special_tokens) {
  const Ids ids = self.prompt("Generator::read", prompt, special_tokens);
  for (const std::int32_t id : ids) {  // all of them before the first piece is read
    check::range("Generator::read", "ids", id, 0, self.model->config().vocab_size - 1);
  }
  const Turn turn("Generator.read", {self.line.get()});
  // In pieces, so that Ctrl-C need not wait for the end of a long prompt.
  constexpr std::ptrdiff_t piece = 512;
  for (auto first = ids.begin(); first != ids.end();) {
    const auto end = first + std::min(piece, ids.end() - first);
    self.generator->read(Ids(first, end));
    first = end;
    check_signals();
  }
  return static_cast<std::int64_t>(ids.size());
}

std::int32_t next(Held& self) {
  const Turn turn("Generator.next", {self.line.get()});
  return self.generator->next();
}

nb::object generate(Held& self, std::int64_t max_tokens, const nb::kwargs& options) {
  return written("Generator.generate", *self.generator, self, {self.line.get()}, max_tokens,
                 options);
}

// A text token by token, for a loop of Python's.
class TextIterator {
 public:
  TextIterator(std::shared_ptr<Held> held, std::int64_t max_tokens, const nb::kwargs& given)
      : held_(std::move(held)) {
    Keywords keywords("Generator.stream", given);
    options_ = generate_options_of(keywords, max_tokens, held_->text());
    keywords.finish();
    options_.check();
  }

  // The next piece of text, in whole characters; without a tokenizer the next id.
  nb::object next() {
    std::string text;
    std::int32_t token = -1;
    {
      const Turn turn("Generator.stream", {held_->line.get()});
      while (!reason_ && text.empty()) {
        if (written_ == options_.max_tokens) {
          reason_ = StopReason::max_tokens;
          break;
        }
        check_signals();
        token = held_->generator->next();
        ++written_;
        if (held_->tokenizer) text = held_->generator->text(options_);
        reason_ = held_->generator->stopped(options_);
        if (!held_->tokenizer) break;
      }
    }
    if (held_->tokenizer ? text.empty() : token < 0) throw nb::stop_iteration();
    return held_->tokenizer ? nb::object(nb::str(text.data(), text.size())) : nb::cast(token);
  }

  std::optional<StopReason> reason() const { return reason_; }

 private:
  std::shared_ptr<Held> held_;
  GenerateOptions options_;
  std::int64_t written_ = 0;
  std::optional<StopReason> reason_;
};

// ---- forks ------------------------------------------------------------------------------------

nb::list forks(Held& self, std::int64_t k) {
  std::vector<Generator> made;
  {
    const Turn turn("Generator.fork", {self.line.get()});
    made = self.generator->fork(k);
  }
  nb::list forks;
  for (Generator& one : made) {
    auto held = std::make_unique<Held>(self.model, self.tokenizer, self.line);
    held->generator.emplace(std::move(one));
    forks.append(nb::cast(held.release(), nb::rv_policy::take_ownership));
  }
  return forks;
}

nb::object fork(Held& self, std::optional<std::int64_t> k) {
  if (k) return forks(self, *k);
  return forks(self, 1)[0];
}

// ---- what it remembers ------------------------------------------------------------------------

nb::object logits(Held& self) {
  Tensor copied;
  {
    const Turn turn("Generator.logits", {self.line.get()});
    const ConstTensorView view = self.generator->logits();
    copied = Tensor::from(view.to_vector<float>(), view.shape());
  }
  return shared_array(std::move(copied));
}

StackState state(Held& self) {
  const Turn turn("Generator.state", {self.line.get()});
  return self.generator->state();
}

void continue_from(Held& self, nb::handle ids, const StackState& state, nb::handle logits) {
  const Ids read = ids_of("Generator.continue_from", "ids", ids);
  const Operand given("Generator.continue_from", "logits", logits);
  const Turn turn("Generator.continue_from", {self.line.get()});
  Tensor there(given.view().shape(), given.view().dtype(), self.model->device());
  copy(given.view(), there, self.line->stream());
  self.generator->continue_from(read, state, there);
}

void set_options(Held& self, const nb::kwargs& options) {
  Keywords given("Generator.set_options", options);
  const SamplingOptions sampling = sampling_of(given, self.generator->options());
  given.finish();
  const Turn turn("Generator.set_options", {self.line.get()});
  self.generator->set_options(sampling);
}

void bind_writing(nb::class_<Held>& c) {
  c.def("read", &read, nb::arg("prompt"), nb::arg("special_tokens") = nb::none(),
        nb::sig("def read(self, prompt: str | collections.abc.Sequence[int], "
                "special_tokens: bool | None = None) -> int"),
        "Reads more of a prompt, text or ids, at any time; returns how many tokens. "
        "special_tokens: whether those that the tokenizer puts round a text are read too; None: "
        "where nothing was read yet. After Ctrl-C a part may have been read: see tokens_seen.")
      .def("next", &next,
           "Chooses the next token. ValueError before anything was read, and where no logit is "
           "finite.")
      .def("generate", &generate, nb::arg("max_tokens") = 128, nb::arg("options"),
           nb::sig("def generate(self, max_tokens: int = 128, *, ignore_eos: bool = False, "
                   "stop: str | collections.abc.Sequence[str] = (), on_token: "
                   "collections.abc.Callable[[int], bool | None] | None = None, on_text: "
                   "collections.abc.Callable[[str], bool | None] | None = None, log_probs: int "
                   "| None = None) -> mamba_cpp._results.Generated"),
           "Writes up to `max_tokens` tokens, until one that ends a text (not with ignore_eos) or "
           "that completes a string of `stop`.\n\n"
           "on_token gets each id, on_text each piece of text in whole characters; False from "
           "either ends after that token. log_probs: the log-probability of each token comes with "
           "the result, and those of so many likeliest ones. What a callback raises comes out "
           "after the tokens so far are part of the text, and so does Ctrl-C.")
      .def(
          "stream",
          [](std::shared_ptr<Held> self, std::int64_t max_tokens, const nb::kwargs& options) {
            return TextIterator(std::move(self), max_tokens, options);
          },
          nb::arg("max_tokens") = 128, nb::arg("options"),
          nb::sig("def stream(self, max_tokens: int = 128, *, ignore_eos: bool = False, stop: "
                  "str | collections.abc.Sequence[str] = ()) -> TextIterator"),
          "The same text as an iterator: over pieces in whole characters, without a tokenizer over "
          "ids. It writes as it is asked; one that is left goes no further.")
      .def(
          "finish_text",
          [](Held& self) {
            const Turn turn("Generator.finish_text", {self.line.get()});
            return self.generator->finish_text();
          },
          "The text ends here: U+FFFD if a character is incomplete, else nothing.")
      .def(
          "log_probs",
          [](Held& self, std::int64_t top) {
            LogProbs odds;
            {
              const Turn turn("Generator.log_probs", {self.line.get()});
              odds = self.generator->log_probs(top);
            }
            return log_probs_of(odds);
          },
          nb::arg("top") = 0,
          nb::sig("def log_probs(self, top: int = 0) -> mamba_cpp._results.LogProbs"),
          "Of the token that next() chose last, and of the `top` likeliest in its place: natural "
          "logarithms of the softmax of the model's logits.");
}

void bind_memory(nb::class_<Held>& c) {
  c.def("fork", &fork, nb::arg("k") = nb::none(),
        nb::sig("def fork(self, k: int | None = None) -> Generator | list[Generator]"),
        "An independent continuation with the same random numbers; with k a list of them, of which "
        "all but the first have other random numbers. Only states are copied.")
      .def(
          "reseed",
          [](Held& self, std::uint64_t seed) {
            const Turn turn("Generator.reseed", {self.line.get()});
            self.generator->reseed(seed);
          },
          nb::arg("seed"), "Other random numbers from here on.")
      .def("set_options", &set_options, nb::arg("options"),
           "Other ways of choosing from here on; options that are not named stay.")
      .def("continue_from", &continue_from, nb::arg("ids"), nb::arg("state"), nb::arg("logits"),
           "Takes over the state after `ids` (at least one) and the logits f32 [1, vocab_size] "
           "that follow them, as if they had been read here. ValueError if anything was read "
           "before.")
      .def("state", &state, "After every token; a copy.")
      .def("logits", &logits, "f32 [1, vocab_size] for the next token; a copy.")
      .def(
          "snapshot",
          [](Held& self) {
            const Turn turn("Generator.snapshot", {self.line.get()});
            return self.generator->snapshot();
          },
          "All of this as a value that outlives the generator.")
      .def(
          "copy_from",
          [](Held& self, const GeneratorSnapshot& snapshot) {
            const Turn turn("Generator.copy_from", {self.line.get()});
            self.generator->copy_from(snapshot);
          },
          nb::arg("snapshot"), "Puts a snapshot back, whatever was written since.")
      .def(
          "save",
          [](Held& self, const Path& path) {
            const Turn turn("Generator.save", {self.line.get()});
            self.generator->save(path.string());
          },
          nb::arg("path"), "A snapshot in a state file, written whole or not at all.")
      .def_static("restore", &restore, nb::arg("source"), nb::arg("model"),
                  nb::arg("tokenizer") = nb::none(), nb::arg("threads") = 0,
                  nb::sig("def restore(source: str | os.PathLike | GeneratorSnapshot, model: "
                          "LanguageModel, tokenizer: Tokenizer | None = None, threads: int = 0) -> "
                          "Generator"),
                  "Goes on from a file of save() or a snapshot, for the same model; ValueError "
                  "where it is of another.")
      .def_prop_ro("model", [](const Held& self) { return self.model; })
      .def_prop_ro("tokenizer", [](const Held& self) { return self.tokenizer; })
      .def_prop_ro(
          "options", [](const Held& self) { return dict_of(self.generator->options()); },
          nb::sig("def options(self) -> dict[str, typing.Any]"),
          "The sampling options, as Generator(model, **options) takes them.")
      .def_prop_ro(
          "tokens_seen", [](const Held& self) { return self.generator->tokens_seen(); },
          "Every token read and generated.");
}

}  // namespace

void bind_generators(nb::module_& m) {
  nb::class_<TextIterator>(m, "TextIterator", "What Generator.stream() gives.")
      .def("__iter__", [](nb::handle self) { return nb::borrow(self); })
      .def("__next__", &TextIterator::next, nb::sig("def __next__(self) -> str | int"))
      .def_prop_ro(
          "reason", [](const TextIterator& text) { return reason_of(text.reason()); },
          nb::sig("def reason(self) -> str | None"),
          "Why it ended: \"max_tokens\", \"eos\" or \"stop_string\"; None before.");
  nb::class_<Held> c(m, "Generator", class_doc);
  c.def("__init__", &make, nb::arg("model"), nb::arg("tokenizer") = nb::none(),
        nb::arg("threads") = 0, nb::arg("options"),
        nb::sig("def __init__(self, model: LanguageModel, tokenizer: Tokenizer | None = "
                "None, threads: int = 0, *, temperature: float = 0, top_k: int = 0, top_p: "
                "float = 1, min_p: float = 0, repetition_penalty: float = 1, seed: int = 0, "
                "logit_bias: dict[int, float] = {}, allowed: collections.abc.Sequence[int] "
                "= ()) -> None"));
  bind_writing(c);
  bind_memory(c);
}

}  // namespace mamba::python
