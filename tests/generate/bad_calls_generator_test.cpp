// Bad calls of generators, pools, caches and tokenizers.
#include "bad_calls.hpp"
#include "each.hpp"

namespace mamba {
namespace {

using namespace testing;

TEST_EACH(BadCalls, Generators, Device device) {
  const TemporaryFolder folder;
  const LanguageModel model = LanguageModel::random(small(), 1, DType::f32, device);
  LanguageModelConfig larger = small();
  larger.vocab_size = 24;
  const LanguageModel other = LanguageModel::random(larger, 1, DType::f32, device);
  GeneratorPool pool(model, 3);
  GeneratorPool spent(model, 1);
  const GeneratorPool held = std::move(spent);
  Generator a = pool.make(), b = pool.make();
  a.read({1, 2});
  b.read({3});
  Generator fresh(model);
  Generator gone(model);
  const Generator taken = std::move(gone);
  const Tokenizer bytes_of = Tokenizer::bytes();
  const StackState state = model.make_state(1);
  const Tensor logits = Tensor::zeros({1, 16}, DType::f32, device);
  const auto sampling = [&](auto change) {
    SamplingOptions options;
    options.temperature = 1;
    change(options);
    Generator(model, options);
  };
  const auto generating = [&](auto change) {
    GenerateOptions options;
    options.max_tokens = 2;
    change(options);
    a.generate(options);
  };
  const std::string moved =
      "Generator: generator: expected a generator, got one that was moved from";
  Generator target(model), draft(model), strange(other);
  StateCache cache(model);
  CacheOptions bad_cache;
  const std::string file = folder.file("g");
  const GeneratorSnapshot snapshot = a.snapshot();
  expect_refused(
      {
          {moved, [&] { gone.state(); }},
          {moved, [&] { gone.fork(); }},
          {moved, [&] { gone.fork(3); }},
          {"Generator::next: group: expected generators, got none", [&] { gone.next(); }},
          {"Generator::read: group: expected generators, got none", [&] { gone.read({1}); }},
          {"Generator::generate: group: expected generators, got none", [&] { gone.generate({}); }},
          {moved, [&] { gone.save(file); }},
          {moved, [&] { gone.logits(); }},
          {moved, [&] { gone.model(); }},
          {moved, [&] { gone.stream(); }},
          {moved, [&] { gone.reseed(1); }},
          {moved, [&] { gone.set_options({}); }},
          {moved, [&] { gone.snapshot(); }},
          {moved, [&] { gone.copy_from(snapshot); }},
          {moved, [&] { gone.continue_from({1}, state, logits); }},
          {moved, [&] { Speculation(gone, draft); }},
          {moved, [&] { Speculation(target, gone); }},
          {moved, [&] { cache.find(gone, {1}); }},
          {moved, [&] { cache.keep(gone, {1}); }},
          {"GeneratorPool: pool: expected a pool, got one that was moved from",
           [&] { spent.make(); }},
          {"GeneratorPool: pool: expected a pool, got one that was moved from",
           [&] { spent.restore(file); }},
          {"GeneratorPool: pool: expected a pool, got one that was moved from",
           [&] { spent.make(snapshot); }},
          {"GeneratorPool::make: snapshot: ...", [&] { GeneratorPool(other, 1).make(snapshot); }},
          {"Generator: snapshot: ...", [&] { Generator(other, snapshot); }},
          {"Generator::copy_from: snapshot: ...", [&] { strange.copy_from(snapshot); }},
          {"GeneratorSnapshot::load: bytes: ...",
           [&] { GeneratorSnapshot::load(mamba::save(snapshot.state())); }},
          {"GeneratorPool: pool: expected a pool, got one that was moved from",
           [&] { spent.capacity(); }},
          {"GeneratorPool: pool: expected a pool, got one that was moved from",
           [&] { spent.size(); }},
          {"GeneratorPool: capacity: ...", [&] { GeneratorPool(model, 0); }},
          {"GeneratorPool: capacity: ...", [&] { GeneratorPool(model, -1); }},
          {"GeneratorPool: capacity: ...", [&] { GeneratorPool(model, huge); }},
          {"SamplingOptions: temperature: ...",
           [&] { sampling([](auto& o) { o.temperature = -1; }); }},
          {"SamplingOptions: temperature: ...",
           [&] { sampling([](auto& o) { o.temperature = nan; }); }},
          {"SamplingOptions: top_k: ...", [&] { sampling([](auto& o) { o.top_k = -1; }); }},
          {"SamplingOptions: top_k: ...", [&] { sampling([](auto& o) { o.top_k = huge; }); }},
          {"SamplingOptions: top_p: ...", [&] { sampling([](auto& o) { o.top_p = 1.5f; }); }},
          {"SamplingOptions: min_p: ...", [&] { sampling([](auto& o) { o.min_p = nan; }); }},
          {"SamplingOptions: repetition_penalty: ...",
           [&] { sampling([](auto& o) { o.repetition_penalty = 0; }); }},
          {"Generator::read: ids: expected 0 to 15, got 16", [&] { a.read({16}); }},
          {"Generator::read: ids: expected 0 to 15, got -1",
           [&] {
             a.read({1, -1});
           }},
          {"Generator::next: prompt: expected at least one token, got none", [&] { fresh.next(); }},
          {"Generator::generate: prompt: expected at least one token, got none",
           [&] { fresh.generate({}); }},
          {"Generator::generate: max_tokens: ...",
           [&] { generating([](auto& o) { o.max_tokens = -1; }); }},
          {"Generator::generate: tokenizer: expected one, to find stop strings with, got none",
           [&] { generating([](auto& o) { o.stop = {"a"}; }); }},
          {"Generator::generate: tokenizer: expected one, to make text with, got none",
           [&] { generating([](auto& o) { o.on_text = [](std::string_view) { return true; }; }); }},
          {"Generator::generate: stop (bytes): ...",
           [&] {
             generating([&](auto& o) {
               o.stop = {""};
               o.tokenizer = &bytes_of;
             });
           }},
          {"Generator::text: tokenizer: expected one, to make text with, got none",
           [&] { a.text({}); }},
          {"Generator::text: tokenizer: expected one, to make text with, got none",
           [&] { fresh.text({}); }},
          {"Generator::fork: k: ...", [&] { a.fork(-1); }},
          {"Generator::fork: k: ...", [&] { a.fork(huge); }},
          {"Generator::next: group: expected generators, got none",
           [&] {
             Generator::next({&a, nullptr});
           }},
          {"Generator::next: group: expected every generator once, got one twice",
           [&] {
             Generator::next({&a, &a});
           }},
          {"Generator::next: group: expected generators of one pool, got one of another pool",
           [&] {
             Generator::next({&a, &fresh});
           }},
          {"Generator::read: prompts: expected 2, got 1",
           [&] {
             Generator::read({&a, &b}, {{1}});
           }},
          {"Generator::generate: options: expected 1 or 2, got 0",
           [&] {
             Generator::generate({&a, &b}, {});
           }},
          {"Generator::continue_from: tokens_seen: expected 0, got 2",
           [&] { a.continue_from({1}, state, logits); }},
          {"Generator::continue_from: ids (their number): ...",
           [&] { fresh.continue_from({}, state, logits); }},
          {"Generator::continue_from: ids: expected 0 to 15, got 99",
           [&] { fresh.continue_from({99}, state, logits); }},
          {"Generator::continue_from: state: expected 2 layers, got 0",
           [&] { fresh.continue_from({1}, {}, logits); }},
          {"Generator::continue_from: logits: expected a tensor, got none",
           [&] { fresh.continue_from({1}, state, {}); }},
          {"...", [&] { Generator::restore(folder.file("none"), model); }},
          {"...", [&] { Generator::restore(std::string(5000, 'x'), model); }},
          {"save_safetensors: ...", [&] { a.save(std::string(5000, 'x')); }},
          {"Speculation: proposals: expected 1 to 64, got 0",
           [&] { Speculation(target, draft, 0); }},
          {"Speculation: proposals: expected 1 to 64, got 65",
           [&] { Speculation(target, draft, 65); }},
          {"Speculation: draft: expected another generator, got the target",
           [&] { Speculation(target, target); }},
          {"Speculation: draft: ...", [&] { Speculation(target, strange); }},
          {"Speculation: target: ...", [&] { Speculation(a, draft); }},
          {"StateCache::find: generator: ...", [&] { cache.find(strange, {1}); }},
          {"StateCache::find: generator: ...", [&] { cache.find(a, {1}); }},
          {"StateCache::keep: generator: ...", [&] { cache.keep(strange, {1}); }},
          {"StateCache::keep: ids: ...",
           [&] {
             cache.keep(a, {1, 2, 3});
           }},
          {"StateCache::read: prompt: expected 0 to 15, got 16", [&] { cache.read(fresh, {16}); }},
          {"StateCache: host_bytes: ...",
           [&] {
             bad_cache = {};
             bad_cache.host_bytes = -1;
             StateCache(model, bad_cache);
           }},
          {"StateCache: keep_every: ...",
           [&] {
             bad_cache = {};
             bad_cache.keep_every = 0;
             StateCache(model, bad_cache);
           }},
          {"StateCache: folder: ...",
           [&] {
             bad_cache = {};
             bad_cache.disk_bytes = 1;
             StateCache(model, bad_cache);
           }},
          {"StateCache: folder: ...",
           [&] {
             bad_cache = {};
             bad_cache.folder = folder.file("c");
             StateCache(model, bad_cache);
           }},
          {"StateCache: ...",
           [&] {
             bad_cache = {};
             bad_cache.disk_bytes = 1;
             bad_cache.folder = std::string(5000, 'x');
             StateCache(model, bad_cache);
           }},
          {"...", [&] { Tokenizer::load(std::string(5000, 'x')); }},
          {"...", [&] { Tokenizer::load(folder.file("none")); }},
          {"...", [&] { bytes_of.decode({-1}); }},
      },
      [&] {
        return bytes(a.state()) + bytes(b.state()) + bytes(fresh.state()) + bytes(a.logits()) +
               std::to_string(a.tokens_seen()) + std::to_string(fresh.tokens_seen()) +
               (std::filesystem::is_empty(folder.path()) ? "" : "a file");
      });
}

}  // namespace
}  // namespace mamba
