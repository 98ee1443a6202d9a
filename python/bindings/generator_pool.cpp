// Several texts through the model together.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include <mamba/generator.hpp>

#include "models.hpp"

namespace mamba::python {

namespace {

using Model = std::shared_ptr<LanguageModel>;
using Held = HeldGenerator;
using Members = std::vector<Held*>;

struct HeldPool {
  Model model;
  std::optional<Tokenizer> tokenizer;
  std::shared_ptr<Line> line;
  std::optional<GeneratorPool> pool;

  HeldPool(Model of, std::int64_t capacity, std::optional<Tokenizer> with, int threads)
      : model(std::move(of)),
        tokenizer(std::move(with)),
        line(std::make_shared<Line>(model->device(), threads)) {
    const Turn turn("GeneratorPool", {line.get()});
    pool.emplace(*model, capacity, line->stream());
  }
};

template <class F>
Held* made(const HeldPool& pool, const char* where, F&& make) {
  auto held = std::make_unique<Held>(pool.model, pool.tokenizer, pool.line);
  {
    const Turn turn(where, {pool.line.get()});
    held->generator.emplace(make());
  }
  return held.release();
}

Held* make(HeldPool& pool, const nb::kwargs& options) {
  Keywords given("GeneratorPool.make", options);
  const SamplingOptions sampling = sampling_of(given);
  given.finish();
  return made(pool, "GeneratorPool.make", [&] { return pool.pool->make(sampling); });
}

Held* restore(HeldPool& pool, nb::handle source) {
  const Source from(source);
  return made(pool, "GeneratorPool.restore", [&] {
    return from.snapshot != nullptr ? pool.pool->make(*from.snapshot)
                                    : pool.pool->restore(from.path);
  });
}

// ---- groups -----------------------------------------------------------------------------------

std::vector<Line*> lines_of(const Members& members) {
  std::vector<Line*> lines;
  for (const Held* member : members) lines.push_back(member->line.get());
  return lines;
}

Generator::Group group_of(const Members& members) {
  Generator::Group group;
  for (Held* member : members) group.push_back(&*member->generator);
  return group;
}

void expect_each(const char* where, const char* name, const Members& members, std::size_t given) {
  if (given == members.size()) return;
  throw ArgumentError(where, name, std::to_string(members.size()) + ", one for each member",
                      std::to_string(given));
}

void read(const Members& members, const nb::list& prompts, std::optional<bool> special_tokens) {
  constexpr const char* where = "GeneratorPool.read";
  expect_each(where, "prompts", members, prompts.size());
  std::vector<Ids> ids;
  for (std::size_t i = 0; i < members.size(); ++i) {
    ids.push_back(members[i]->prompt(where, prompts[i], special_tokens));
  }
  const Turn turn(where, lines_of(members));
  Generator::read(group_of(members), ids);
}

nb::list next(const Members& members) {
  std::vector<Chosen> chosen;
  {
    const Turn turn("GeneratorPool.next", lines_of(members));
    chosen = Generator::next(group_of(members));
  }
  nb::list tokens;
  for (const Chosen& one : chosen) {
    tokens.append(one.error ? exception_of(one.error) : nb::cast(one.token));
  }
  return tokens;
}

nb::list generate(const Members& members, std::int64_t max_tokens, nb::handle each,
                  const nb::kwargs& options) {
  constexpr const char* where = "GeneratorPool.generate";
  std::vector<nb::dict> own;
  if (!each.is_none()) {
    if (!nb::try_cast(each, own)) {
      throw ArgumentError(where, "each", "a list of dicts", text_of(each));
    }
    expect_each(where, "each", members, own.size());
  }
  const auto ended = std::make_shared<std::exception_ptr>();
  std::vector<std::unique_ptr<Writing>> writings;
  std::vector<GenerateOptions> all;
  for (std::size_t i = 0; i < members.size(); ++i) {
    nb::dict merged = nb::cast<nb::dict>(options.attr("copy")());
    merged["max_tokens"] = max_tokens;
    if (!own.empty()) merged.update(own[i]);
    Keywords given(where, merged);
    std::int64_t most = 0;
    given.take("max_tokens", most, "a whole number");
    writings.push_back(std::make_unique<Writing>(*members[i], given, most, ended));
    all.push_back(writings.back()->options());
  }
  std::vector<Generated> generated;
  {
    const Turn turn(where, lines_of(members));
    generated = Generator::generate(group_of(members), all);
  }
  nb::list results;
  for (std::size_t i = 0; i < members.size(); ++i) {
    writings[i]->check_ended();
    results.append(writings[i]->result(generated[i]));
  }
  return results;
}

}  // namespace

void bind_generator_pools(nb::module_& m) {
  nb::class_<HeldPool>(
      m, "GeneratorPool",
      "Room for up to `capacity` texts that go through the model together: they join when they are "
      "made, leave when they are deleted, and the others go on meanwhile. Memory is taken once.\n\n"
      "read(), next() and generate() take a group, whichever members of one pool are named: one "
      "run of the model for all. No member knows of the others, and what goes wrong with one (no "
      "finite logit, a callback that raises) is told in its own result while the others go on.")
      .def(nb::init<Model, std::int64_t, std::optional<Tokenizer>, int>(), nb::arg("model"),
           nb::arg("capacity"), nb::arg("tokenizer") = nb::none(), nb::arg("threads") = 0)
      .def("make", &make, nb::arg("options"),
           nb::sig("def make(self, *, temperature: float = 0, top_k: int = 0, top_p: float = "
                   "1, min_p: float = 0, repetition_penalty: float = 1, seed: int = 0, "
                   "logit_bias: dict[int, float] = {}, allowed: collections.abc.Sequence[int] "
                   "= ()) -> Generator"),
           "ValueError if there is no room.")
      .def("restore", &restore, nb::arg("source"),
           nb::sig("def restore(self, source: str | os.PathLike | GeneratorSnapshot) -> "
                   "Generator"),
           "Goes on from a file of Generator.save() or a snapshot of the same model.")
      .def_static(
          "read", &read, nb::arg("group"), nb::arg("prompts"),
          nb::arg("special_tokens") = nb::none(),
          nb::sig("def read(group: collections.abc.Sequence[Generator], prompts: list[str | "
                  "collections.abc.Sequence[int]], special_tokens: bool | None = None) -> "
                  "None"),
          "A prompt for each member, of any lengths.")
      .def_static("next", &next, nb::arg("group"),
                  nb::sig("def next(group: collections.abc.Sequence[Generator]) -> list[int | "
                          "Exception]"),
                  "The next token of each member, or what went wrong with it.")
      .def_static(
          "generate", &generate, nb::arg("group"), nb::arg("max_tokens") = 128,
          nb::arg("each") = nb::none(), nb::arg("options"),
          nb::sig("def generate(group: collections.abc.Sequence[Generator], max_tokens: int = "
                  "128, each: collections.abc.Sequence[dict[str, typing.Any]] | None = None, "
                  "*, ignore_eos: bool = False, stop: str | collections.abc.Sequence[str] = "
                  "(), on_token: collections.abc.Callable[[int], bool | None] | None = None, "
                  "on_text: collections.abc.Callable[[str], bool | None] | None = None, "
                  "log_probs: int | None = None) -> list[mamba_cpp._results.Generated]"),
          "As Generator.generate for each member; `each` has a dict for each member, whose "
          "options go before those for all. A member that has finished drops out.")
      .def_prop_ro("capacity", [](const HeldPool& pool) { return pool.pool->capacity(); })
      .def_prop_ro(
          "size", [](const HeldPool& pool) { return pool.pool->size(); }, "Generators that live.");
}

}  // namespace mamba::python
