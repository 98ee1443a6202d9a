// What makes generators faster: beginnings that are known, and a small model that guesses.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include <mamba/speculative.hpp>
#include <mamba/state_cache.hpp>

#include "models.hpp"

namespace mamba::python {

namespace {

using Model = std::shared_ptr<LanguageModel>;
using Held = HeldGenerator;

// ---- known beginnings -------------------------------------------------------------------------

struct HeldCache {
  Model model;
  std::unique_ptr<StateCache> cache;
};

// From any thread that uses the cache: Python's warning, unless it is an error there.
void warn(const std::string& problem) {
  const nb::gil_scoped_acquire gil;
  if (PyErr_WarnEx(PyExc_RuntimeWarning, problem.c_str(), 1) != 0) PyErr_WriteUnraisable(nullptr);
}

void make_cache(HeldCache* self, Model model, const nb::kwargs& options) {
  Keywords given("StateCache", options);
  CacheOptions wanted;
  given.take("device_bytes", wanted.device_bytes, "a whole number");
  given.take("host_bytes", wanted.host_bytes, "a whole number");
  given.take("disk_bytes", wanted.disk_bytes, "a whole number");
  if (const nb::object folder = given.take("folder"); folder.is_valid()) {
    wanted.folder = nb::cast<std::string>(nb::module_::import_("os").attr("fspath")(folder));
  }
  given.take("keep_every", wanted.keep_every, "a whole number");
  given.finish();
  wanted.on_problem = warn;
  auto cache = std::make_unique<StateCache>(*model, std::move(wanted));
  new (self) HeldCache{std::move(model), std::move(cache)};
}

template <class F>
auto with_prompt(const char* where, Held& generator, nb::handle prompt, F&& call) {
  const Ids ids = generator.prompt(where, prompt, std::nullopt);
  const Turn turn(where, {generator.line.get()});
  return call(*generator.generator, ids);
}

nb::dict counts(const HeldCache& self) {
  const CacheCounts counts = self.cache->counts();
  nb::dict all;
  all["hits"] = counts.hits;
  all["misses"] = counts.misses;
  all["tokens"] = counts.tokens;
  all["device_bytes"] = counts.device_bytes;
  all["host_bytes"] = counts.host_bytes;
  all["disk_bytes"] = counts.disk_bytes;
  return all;
}

void bind_cache(nb::module_& m) {
  nb::class_<HeldCache>(
      m, "StateCache",
      "What a model remembers after known beginnings of prompts: the part of a prompt that any "
      "generator has read before is not read again.\n\n"
      "device_bytes, host_bytes, disk_bytes: what may be taken in the three places. folder: of the "
      "files, made if it does not exist. keep_every: tokens between states that read() keeps. What "
      "goes wrong with a file is a RuntimeWarning, and the cache goes on without it.")
      .def("__init__", &make_cache, nb::arg("model"), nb::arg("options"),
           nb::sig("def __init__(self, model: LanguageModel, *, device_bytes: int = 0, "
                   "host_bytes: int = 1 << 30, disk_bytes: int = 0, folder: str | os.PathLike "
                   "= '', keep_every: int = 256) -> None"))
      .def(
          "read",
          [](HeldCache& self, Held& generator, nb::handle prompt) {
            return with_prompt(
                "StateCache.read", generator, prompt,
                [&](Generator& one, const Ids& ids) { return self.cache->read(one, ids); });
          },
          nb::arg("generator"), nb::arg("prompt"),
          nb::sig("def read(self, generator: Generator, prompt: str | "
                  "collections.abc.Sequence[int]) -> int"),
          "Reads a prompt into a generator that has read nothing: the longest known beginning is "
          "taken over, the rest is read and kept. Returns how many tokens were known.")
      .def(
          "find",
          [](HeldCache& self, Held& generator, nb::handle prompt) {
            return with_prompt(
                "StateCache.find", generator, prompt,
                [&](Generator& one, const Ids& ids) { return self.cache->find(one, ids); });
          },
          nb::arg("generator"), nb::arg("prompt"),
          nb::sig("def find(self, generator: Generator, prompt: str | "
                  "collections.abc.Sequence[int]) -> int"),
          "Takes over the longest known beginning of `prompt`; the generator must then read what "
          "lies behind it. Returns its tokens, 0 if none.")
      .def(
          "keep",
          [](HeldCache& self, Held& generator, nb::handle ids) {
            const Ids seen = ids_of("StateCache.keep", "ids", ids);
            const Turn turn("StateCache.keep", {generator.line.get()});
            self.cache->keep(*generator.generator, seen);
          },
          nb::arg("generator"), nb::arg("ids"),
          nb::sig("def keep(self, generator: Generator, ids: collections.abc.Sequence[int]) "
                  "-> None"),
          "Remembers `ids`, which are all that the generator has read and generated.")
      .def(
          "flush",
          [](HeldCache& self) {
            const nb::gil_scoped_release release;
            self.cache->flush();
          },
          "Writes what is in memory alone into the folder.")
      .def(
          "counts", &counts, nb::sig("def counts(self) -> dict[str, int]"),
          "hits and misses: prompts whose beginning was known, or not; tokens that did not have to "
          "be read; device_bytes, host_bytes, disk_bytes.");
}

// ---- a small model that guesses ---------------------------------------------------------------

struct HeldSpeculation {
  std::shared_ptr<Held> target;
  std::shared_ptr<Held> draft;
  Speculation speculation;

  HeldSpeculation(std::shared_ptr<Held> of, std::shared_ptr<Held> by, std::int64_t proposals)
      : target(std::move(of)),
        draft(std::move(by)),
        speculation(*target->generator, *draft->generator, proposals) {}

  std::vector<Line*> lines() const { return {target->line.get(), draft->line.get()}; }
};

void read(HeldSpeculation& self, nb::handle prompt) {
  const Ids ids = self.target->prompt("Speculation.read", prompt, std::nullopt);
  const Turn turn("Speculation.read", self.lines());
  self.speculation.read(ids);
}

Ids next(HeldSpeculation& self) {
  const Turn turn("Speculation.next", self.lines());
  return self.speculation.next();
}

nb::object generate(HeldSpeculation& self, std::int64_t max_tokens, const nb::kwargs& options) {
  return written("Speculation.generate", self.speculation, *self.target, self.lines(), max_tokens,
                 options);
}

void bind_speculation(nb::module_& m) {
  nb::class_<HeldSpeculation>(
      m, "Speculation",
      "Advances `target` by several tokens at a time with the help of `draft`, a generator of a "
      "smaller model with the same ids that has read the same text: the same distribution, greedy "
      "the same text, fewer runs. Each has a pool of its own; both are treated alike.\n\n"
      "proposals: 1 to 64 for each run.")
      .def(nb::init<std::shared_ptr<Held>, std::shared_ptr<Held>, std::int64_t>(),
           nb::arg("target"), nb::arg("draft"), nb::arg("proposals") = 4)
      .def("read", &read, nb::arg("prompt"),
           nb::sig("def read(self, prompt: str | collections.abc.Sequence[int]) -> None"),
           "Into both.")
      .def("next", &next, "The next tokens, between 1 and proposals + 1.")
      .def("generate", &generate, nb::arg("max_tokens") = 128, nb::arg("options"),
           nb::sig("def generate(self, max_tokens: int = 128, *, ignore_eos: bool = False, "
                   "stop: str | collections.abc.Sequence[str] = (), on_token: "
                   "collections.abc.Callable[[int], bool | None] | None = None, on_text: "
                   "collections.abc.Callable[[str], bool | None] | None = None, log_probs: int "
                   "| None = None) -> mamba_cpp._results.Generated"),
           "As Generator.generate: ends after the same token as it would.")
      .def(
          "counts",
          [](const HeldSpeculation& self) {
            const SpeculationCounts& counts = self.speculation.counts();
            nb::dict all;
            all["runs"] = counts.runs;
            all["proposed"] = counts.proposed;
            all["accepted"] = counts.accepted;
            return all;
          },
          nb::sig("def counts(self) -> dict[str, int]"),
          "runs of the large model, tokens proposed by the small one, and accepted of those.");
}

}  // namespace

void bind_generator_helpers(nb::module_& m) {
  bind_cache(m);
  bind_speculation(m);
}

}  // namespace mamba::python
