#include <mamba/config.hpp>

#include <limits>

#include <nlohmann/json.hpp>

#include "testing.hpp"

namespace mamba {
namespace {

using nlohmann::json;
using testing::expect_error;

const char* const mamba_130m_hf = R"({
  "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_model": 768,
  "eos_token_id": 0, "expand": 2, "fused_add_norm": true, "hidden_act": "silu", "hidden_size": 768,
  "initializer_range": 0.1, "intermediate_size": 1536, "layer_norm_epsilon": 1e-05,
  "model_type": "mamba", "n_layer": 24, "num_hidden_layers": 24, "pad_token_id": 0,
  "pad_vocab_size_multiple": 8, "rescale_prenorm_residual": false, "residual_in_fp32": true,
  "rms_norm": true, "ssm_cfg": {}, "state_size": 16, "time_step_floor": 0.0001,
  "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001,
  "time_step_rank": 48, "time_step_scale": 1.0, "torch_dtype": "float32",
  "transformers_version": "4.39.0.dev0", "use_bias": false, "use_cache": true,
  "use_conv_bias": true, "vocab_size": 50280
})";

const char* const mamba_130m = R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277,
  "ssm_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
  "pad_vocab_size_multiple": 8})";

const char* const falcon_mamba_7b = R"({
  "architectures": ["FalconMambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4,
  "eos_token_id": 11, "expand": 16, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.1, "intermediate_size": 8192, "layer_norm_epsilon": 1e-05,
  "mixer_rms_eps": 1e-06, "model_type": "falcon_mamba", "num_hidden_layers": 64,
  "pad_token_id": 11, "rescale_prenorm_residual": false, "residual_in_fp32": true,
  "state_size": 16, "tie_word_embeddings": false, "time_step_floor": 0.0001,
  "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001,
  "time_step_rank": 256, "time_step_scale": 1.0, "torch_dtype": "bfloat16", "use_bias": false,
  "use_cache": true, "use_conv_bias": true, "vocab_size": 65024})";

// `text` with one key replaced; a null pointer removes it.
std::string with(const char* text, const std::string& key, const char* value) {
  json object = json::parse(text);
  const json::json_pointer place("/" + key);
  if (value != nullptr) {
    object[place] = json::parse(value);
  } else {
    object[place.parent_pointer()].erase(place.back());
  }
  return object.dump();
}

void expect_equal(const LanguageModelConfig& a, const LanguageModelConfig& b) {
  EXPECT_EQ(a.layer.d_model, b.layer.d_model);
  EXPECT_EQ(a.layer.d_state, b.layer.d_state);
  EXPECT_EQ(a.layer.d_conv, b.layer.d_conv);
  EXPECT_EQ(a.layer.expand, b.layer.expand);
  EXPECT_EQ(a.layer.d_inner, b.layer.d_inner);
  EXPECT_EQ(a.layer.dt_rank, b.layer.dt_rank);
  EXPECT_EQ(a.layer.use_bias, b.layer.use_bias);
  EXPECT_EQ(a.layer.use_conv_bias, b.layer.use_conv_bias);
  EXPECT_EQ(a.layer.norm_dt_b_c, b.layer.norm_dt_b_c);
  EXPECT_EQ(a.layer.norm_dt_b_c_epsilon, b.layer.norm_dt_b_c_epsilon);
  EXPECT_EQ(a.layer.gated_norm, b.layer.gated_norm);
  EXPECT_EQ(a.layer.gated_norm_epsilon, b.layer.gated_norm_epsilon);
  EXPECT_EQ(a.layer.initial_D, b.layer.initial_D);
  EXPECT_EQ(a.layer.dt_min, b.layer.dt_min);
  EXPECT_EQ(a.layer.dt_max, b.layer.dt_max);
  EXPECT_EQ(a.layer.dt_floor, b.layer.dt_floor);
  EXPECT_EQ(a.layer.dt_scale, b.layer.dt_scale);
  EXPECT_EQ(a.n_layer, b.n_layer);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.vocab_rows, b.vocab_rows);
  EXPECT_EQ(a.tie_embeddings, b.tie_embeddings);
  EXPECT_EQ(a.norm_epsilon, b.norm_epsilon);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
}

TEST(Config, HuggingFace) {
  LanguageModelConfig expected;
  expected.layer.d_model = 768;
  expected.layer.d_state = 16;
  expected.layer.d_inner = 1536;
  expected.layer.dt_rank = 48;
  expected.n_layer = 24;
  expected.vocab_size = expected.vocab_rows = 50280;
  expected.eos_token_ids = {0};
  const LanguageModelConfig config = parse_config(mamba_130m_hf, "config.json");
  expect_equal(config, expected);
  EXPECT_EQ(config.source_json, mamba_130m_hf);
}

TEST(Config, EveryFieldIsRead) {
  LanguageModelConfig expected;
  expected.layer = {MixerKind::mamba1,
                    64,
                    8,
                    3,
                    3,
                    96,
                    5,
                    true,
                    false,
                    false,
                    1e-6f,
                    true,
                    2e-5f,
                    0.25f,
                    0.002f,
                    0.2f,
                    2e-4f,
                    0.5f};
  expected.n_layer = 2;
  expected.vocab_size = expected.vocab_rows = 101;
  expected.tie_embeddings = false;
  expected.norm_epsilon = 1e-6f;
  expected.eos_token_ids = {1, 2};
  expect_equal(parse_config(R"({"model_type": "mamba", "hidden_size": 64.0, "state_size": 8,
    "conv_kernel": 3, "expand": 3, "intermediate_size": 96, "time_step_rank": 5, "use_bias": true,
    "use_conv_bias": false, "time_step_min": 0.002, "time_step_max": 0.2, "time_step_floor": 2e-4,
    "time_step_scale": 0.5, "num_hidden_layers": 2, "vocab_size": 101, "eos_token_id": [1, 2],
    "tie_word_embeddings": false, "layer_norm_epsilon": 1e-6, "hidden_act": "swish",
    "mamba_cpp": {"gated_norm": true, "gated_norm_epsilon": 2e-5, "initial_D": 0.25}})",
                            "c"),
               expected);
  expected.layer.gated_norm = false;
  expected.layer.gated_norm_epsilon = 1e-5f;
  expected.layer.initial_D = 1;
  expected.vocab_rows = 112;
  expected.layer.d_inner = 192;
  expected.norm_epsilon = 1e-5f;
  expected.eos_token_ids = {0};
  expect_equal(parse_config(R"({"d_model": 64, "n_layer": 2, "vocab_size": 101,
    "tie_embeddings": false, "pad_vocab_size_multiple": 16, "attn_layer_idx": [], "attn_cfg": {},
    "d_intermediate": 0, "ssm_cfg": {"layer": "Mamba1", "d_state": 8, "d_conv": 3, "expand": 3,
    "dt_rank": 5, "dt_min": 0.002, "dt_max": 0.2, "dt_init_floor": 2e-4, "dt_scale": 0.5,
    "bias": true, "conv_bias": false, "dt_init": "constant", "use_fast_path": true}})",
                            "c"),
               expected);
}

TEST(Config, MambaSsm) {
  LanguageModelConfig expected = parse_config(mamba_130m_hf, "c");
  expected.vocab_size = 50277;
  expect_equal(parse_config(mamba_130m, "c"), expected);
  EXPECT_EQ(parse_config(with(mamba_130m, "ssm_cfg", R"({"dt_rank": "auto"})"), "c").layer.dt_rank,
            48);
}

TEST(Config, FalconMamba) {
  const LanguageModelConfig config = parse_config(falcon_mamba_7b, "c");
  EXPECT_EQ(config.layer.expand, 16);
  EXPECT_EQ(config.layer.d_inner, 8192);
  EXPECT_EQ(config.layer.dt_rank, 256);
  EXPECT_TRUE(config.layer.norm_dt_b_c);
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::int32_t>{11});
  const auto changed = [](const char* key, const char* value) {
    return parse_config(with(falcon_mamba_7b, key, value), "c");
  };
  EXPECT_TRUE(changed("tie_word_embeddings", nullptr).tie_embeddings);
  EXPECT_TRUE(changed("tie_word_embeddings", "true").tie_embeddings);
  EXPECT_EQ(changed("mixer_rms_eps", "1e-3").layer.norm_dt_b_c_epsilon, 1e-3f);
}

TEST(Config, WhatMayBeMissing) {
  const LanguageModelConfig expected = parse_config(mamba_130m_hf, "c");
  expect_equal(parse_config(R"({"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24,
                                "vocab_size": 50280})",
                            "c"),
               expected);
  const auto changed = [](const char* key, const char* value) {
    return parse_config(with(mamba_130m_hf, key, value), "c");
  };
  EXPECT_EQ(changed("time_step_rank", "\"auto\"").layer.dt_rank, 48);
  EXPECT_TRUE(changed("eos_token_id", "null").eos_token_ids.empty());
  EXPECT_TRUE(changed("eos_token_id", "[]").eos_token_ids.empty());
}

TEST(Config, FieldsThatCannotBeAreNamed) {
  struct Wrong {
    const char* source;
    const char* key;
    const char* value;
    const char* text;
  };
  const std::vector<Wrong> wrongs{
      {mamba_130m_hf, "hidden_size", nullptr, "hidden_size: expected 1 to 2147483647, got nothing"},
      {mamba_130m_hf, "hidden_size", "0", "hidden_size: expected 1 to 2147483647, got 0"},
      {mamba_130m_hf, "hidden_size", "-3", "hidden_size: expected 1 to 2147483647, got -3"},
      {mamba_130m_hf, "hidden_size", "1.5", "hidden_size: expected 1 to 2147483647, got 1.5"},
      {mamba_130m_hf, "hidden_size", "true", "hidden_size: expected 1 to 2147483647, got true"},
      {mamba_130m_hf, "hidden_size", "null", "hidden_size: expected 1 to 2147483647, got null"},
      {mamba_130m_hf, "hidden_size", "\"768\"",
       "hidden_size: expected 1 to 2147483647, got \"768\""},
      {mamba_130m_hf, "hidden_size", "[768]", "hidden_size: expected 1 to 2147483647, got a list"},
      {mamba_130m_hf, "hidden_size", "2147483648",
       "hidden_size: expected 1 to 2147483647, got 2147483648"},
      {mamba_130m_hf, "hidden_size", "18446744073709551615",
       "hidden_size: expected 1 to 2147483647, got 18446744073709551615"},
      {mamba_130m_hf, "intermediate_size", "0",
       "intermediate_size: expected 1 to 2147483647, got 0"},
      {mamba_130m_hf, "state_size", "257", "state_size: expected 1 to 256, got 257"},
      {mamba_130m_hf, "conv_kernel", "0", "conv_kernel: expected 1 to 2147483647, got 0"},
      {mamba_130m_hf, "num_hidden_layers", "65537",
       "num_hidden_layers: expected 1 to 65536, got 65537"},
      {mamba_130m_hf, "time_step_rank", "\"own\"",
       "time_step_rank: expected 1 to 2147483647, got \"own\""},
      {mamba_130m_hf, "vocab_size", nullptr, "vocab_size: expected 1 to 2147483647, got nothing"},
      {mamba_130m_hf, "layer_norm_epsilon", "0",
       "layer_norm_epsilon: expected a positive number, got 0"},
      {mamba_130m_hf, "layer_norm_epsilon", "\"1e-5\"",
       "layer_norm_epsilon: expected a positive number, got \"1e-5\""},
      {mamba_130m_hf, "time_step_min", "1e300",
       "time_step_min: expected a positive number, got 1e+300"},
      {mamba_130m_hf, "time_step_max", "0.0001",
       "dt_max: expected a number of at least dt_min, got 0.0001"},
      {mamba_130m_hf, "use_bias", "0", "use_bias: expected true or false, got 0"},
      {mamba_130m_hf, "use_conv_bias", "null", "use_conv_bias: expected true or false, got null"},
      {mamba_130m_hf, "eos_token_id", "-1",
       "eos_token_id: expected ids of 0 to 2147483647, got -1"},
      {mamba_130m_hf, "eos_token_id", "[0, 0.5]",
       "eos_token_id: expected ids of 0 to 2147483647, got 0.5"},
      {mamba_130m_hf, "eos_token_id", "true",
       "eos_token_id: expected ids of 0 to 2147483647, got true"},
      {mamba_130m_hf, "model_type", "\"mamba3\"",
       "model_type: expected mamba or falcon_mamba or mamba2, got \"mamba3\""},
      {mamba_130m_hf, "hidden_act", "\"gelu\"", "hidden_act: expected silu, got \"gelu\""},
      {mamba_130m_hf, "rms_norm", "false", "rms_norm: expected true, got false"},
      {mamba_130m_hf, "mamba_cpp", R"({"fast": 1})",
       "mamba_cpp.fast: expected an option of this version, got 1"},
      {mamba_130m_hf, "mamba_cpp", R"({"gated_norm": 1})",
       "mamba_cpp.gated_norm: expected true or false, got 1"},
      {mamba_130m_hf, "mamba_cpp", R"({"gated_norm_epsilon": 0})",
       "mamba_cpp.gated_norm_epsilon: expected a positive number, got 0"},
      {mamba_130m_hf, "mamba_cpp", R"({"initial_D": "one"})",
       "mamba_cpp.initial_D: expected a number, got \"one\""},
      {mamba_130m_hf, "mamba_cpp", "1", "mamba_cpp: expected an object, got 1"},
      {mamba_130m_hf, "mamba_cpp", R"({"vocab_size": 50281})",
       "mamba_cpp.vocab_size: expected 1 to 50280, got 50281"},
      {falcon_mamba_7b, "mixer_rms_eps", "-1", "mixer_rms_eps: expected a positive number, got -1"},
      {mamba_130m, "d_model", "\"a\"", "d_model: expected 1 to 2147483647, got \"a\""},
      {mamba_130m, "n_layer", nullptr, "n_layer: expected 1 to 65536, got nothing"},
      {mamba_130m, "pad_vocab_size_multiple", "0",
       "pad_vocab_size_multiple: expected 1 to 2147483647, got 0"},
      {mamba_130m, "ssm_cfg", "[]", "ssm_cfg: expected an object, got a list"},
      {mamba_130m, "ssm_cfg", R"({"layer": "Mamba3"})",
       "ssm_cfg.layer: expected Mamba1 or Mamba2, got \"Mamba3\""},
      {mamba_130m, "ssm_cfg", R"({"headdim": 64})",
       "ssm_cfg.headdim: expected an option of Mamba1, got 64"},
      {mamba_130m, "ssm_cfg", R"({"d_state": 0})", "ssm_cfg.d_state: expected 1 to 256, got 0"},
      {mamba_130m, "attn_layer_idx", "[1]",
       "attn_layer_idx: expected an empty list (this library has no attention), got a list"},
      {mamba_130m, "d_intermediate", "64",
       "d_intermediate: expected 0 (this library has no MLP layers), got 64"},
      {mamba_130m, "hidden_act", "\"gelu\"", "hidden_act: expected silu, got \"gelu\""},
      {mamba_130m, "rms_norm", "false", "rms_norm: expected true, got false"},
  };
  for (const Wrong& wrong : wrongs) {
    const std::string text = with(wrong.source, wrong.key, wrong.value);
    expect_error<FormatError>("x/config.json: " + std::string(wrong.text),
                              [&] { parse_config(text, "x/config.json"); });
  }
}

TEST(Config, ProductsThatCannotBe) {
  std::string text = with(mamba_130m_hf, "intermediate_size", nullptr);
  text = with(text.c_str(), "hidden_size", "2147483647");
  expect_error<FormatError>("c: d_inner: expected 1 to 2147483647, got 4294967294",
                            [&] { parse_config(text, "c"); });
  text = with(text.c_str(), "intermediate_size", "2147483647");
  expect_error<FormatError>(
      "c: 2 * d_inner * d_model: expected 1 to 9007199254740992, got 9223372028264841218",
      [&] { parse_config(text, "c"); });
  text = with(with(mamba_130m_hf, "vocab_size", "2147483647").c_str(), "hidden_size", "4194305");
  EXPECT_THROW(parse_config(text, "c"), FormatError);
}

TEST(Config, TextThatIsNoConfig) {
  const auto expect = [](const std::string& text, const std::string& said) {
    expect_error<FormatError>("c: " + said, [&] { parse_config(text, "c"); });
  };
  expect("", "JSON: expected valid JSON, got an error at byte 1");
  expect("{", "JSON: expected valid JSON, got an error at byte 2");
  expect("[]", "JSON: expected an object, got a list");
  expect("{}", "model_type: expected mamba or falcon_mamba or mamba2, got nothing");
  expect(std::string("{}\0}", 4), "JSON: expected text, got a NUL at byte 2");
  expect("{\"a\": 1e400}", "JSON: expected numbers that fit a double, got a larger one");
  expect(R"({"a": {"b": 1, "b": 2}})", "\"b\": expected a key given once, got it twice");
  expect("{\"a\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}",
         "JSON: expected at most 64 levels, got more");
  // Damage is never more than a FormatError.
  testing::Random random(1);
  const std::string source = falcon_mamba_7b;
  int refused = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::string damaged = source;
    for (int change = 0; change < 3; ++change) {
      const auto at = static_cast<std::size_t>(
          random.integer(0, static_cast<std::int64_t>(damaged.size()) - 1));
      damaged[at] = static_cast<char>(random.integer(0, 3) > 0 ? "0-e.\"{}[],"[random.integer(0, 9)]
                                                               : random.integer(0, 255));
    }
    try {
      const LanguageModelConfig config = parse_config(damaged, "c");
      expect_equal(parse_config(to_json(config), "c"), config);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(Config, ResolvedFillsInTheRules) {
  LayerConfig layer;
  layer.d_model = 100;
  EXPECT_EQ(layer.resolved().d_inner, 200);
  EXPECT_EQ(layer.resolved().dt_rank, 7);
  layer.d_inner = 10;
  layer.dt_rank = 3;
  EXPECT_EQ(layer.resolved().d_inner, 10);
  EXPECT_EQ(layer.resolved().dt_rank, 3);
  LanguageModelConfig model;
  model.layer.d_model = 16;
  model.n_layer = 1;
  model.vocab_size = 9;
  EXPECT_EQ(model.resolved().vocab_rows, 16);
  EXPECT_EQ(model.resolved().layer.d_inner, 32);
  model.vocab_rows = 9;
  EXPECT_EQ(model.resolved().vocab_rows, 9);
}

TEST(Config, ResolvedNamesWhatCannotBe) {
  const auto layer = [](const std::string& text, auto change) {
    LayerConfig config;
    config.d_model = 16;
    change(config);
    expect_error<ArgumentError>("LayerConfig: " + text, [&] { config.resolved(); });
  };
  layer("mixer: expected a MixerKind, got 7", [](auto& c) { c.mixer = MixerKind{7}; });
  layer("d_model: expected 1 to 2147483647, got 0", [](auto& c) { c.d_model = 0; });
  layer("d_state: expected 1 to 256, got 257", [](auto& c) { c.d_state = 257; });
  layer("d_state: expected 1 to 256, got -1", [](auto& c) { c.d_state = -1; });
  layer("d_conv: expected 1 to 2147483647, got 0", [](auto& c) { c.d_conv = 0; });
  layer("expand: expected 1 to 2147483647, got -1", [](auto& c) { c.expand = -1; });
  layer("d_inner: expected 1 to 2147483647, got -1", [](auto& c) { c.d_inner = -1; });
  layer("dt_rank: expected 1 to 2147483647, got -1", [](auto& c) { c.dt_rank = -1; });
  layer("dt_min: expected a positive number, got nan",
        [](auto& c) { c.dt_min = std::numeric_limits<float>::quiet_NaN(); });
  layer("dt_max: expected a number of at least dt_min, got 0.0001",
        [](auto& c) { c.dt_max = 1e-4f; });
  const auto model = [](const std::string& text, auto change) {
    LanguageModelConfig config;
    config.layer.d_model = 16;
    config.n_layer = 1;
    config.vocab_size = 10;
    change(config);
    expect_error<ArgumentError>("LanguageModelConfig: " + text, [&] { config.resolved(); });
  };
  model("d_state: expected 1 to 256, got 300", [](auto& c) { c.layer.d_state = 300; });
  model("n_layer: expected 1 to 65536, got 0", [](auto& c) { c.n_layer = 0; });
  model("vocab_size: expected 1 to 2147483647, got 0", [](auto& c) { c.vocab_size = 0; });
  model("vocab_rows: expected 10 to 2147483647, got 9", [](auto& c) { c.vocab_rows = 9; });
  model("norm_epsilon: expected a positive number, got 0", [](auto& c) { c.norm_epsilon = 0; });
  model("eos_token_ids: expected 0 to 2147483647, got -1", [](auto& c) { c.eos_token_ids = {-1}; });
}

TEST(Config, SavedAndReadAgainIsEqual) {
  for (const char* source : {mamba_130m_hf, mamba_130m, falcon_mamba_7b}) {
    const LanguageModelConfig config = parse_config(source, "c");
    const std::string saved = to_json(config);
    const LanguageModelConfig again = parse_config(saved, "c");
    expect_equal(again, config);
    EXPECT_EQ(to_json(again), saved);
  }
  // Published files of Hugging Face come back with every value they had; what was left out is
  // added.
  for (const char* source : {mamba_130m_hf, falcon_mamba_7b}) {
    json saved = json::parse(to_json(parse_config(source, "c")));
    const json before = json::parse(source);
    for (const auto& [key, value] : before.items()) EXPECT_EQ(saved[key], value) << key;
  }
  EXPECT_NE(to_json(parse_config(mamba_130m_hf, "c")).find("\"layer_norm_epsilon\": 1e-05"),
            std::string::npos);
}

TEST(Config, SavingKeepsUnknownKeysAndOverwritesKnownOnes) {
  LanguageModelConfig config =
      parse_config(with(mamba_130m_hf, "their_option", R"({"deep": [1, {"x": null}]})"), "c");
  config.layer.d_model = 512;
  config.layer.d_inner = 700;
  config.n_layer = 3;
  config.tie_embeddings = false;
  config.vocab_size = 50277;
  config.eos_token_ids = {};
  const json saved = json::parse(to_json(config));
  EXPECT_EQ(saved["their_option"], json::parse(R"({"deep": [1, {"x": null}]})"));
  EXPECT_EQ(saved["torch_dtype"], "float32");
  EXPECT_EQ(saved["hidden_size"], 512);
  EXPECT_EQ(saved["d_model"], 512);
  EXPECT_EQ(saved["n_layer"], 3);
  EXPECT_EQ(saved["intermediate_size"], 700);
  EXPECT_EQ(saved["vocab_size"], 50280);
  EXPECT_EQ(saved["mamba_cpp"], json::parse(R"({"vocab_size": 50277})"));
  EXPECT_EQ(saved["eos_token_id"], nullptr);
  expect_equal(parse_config(saved.dump(), "c"), config);
  config.vocab_size = config.vocab_rows;
  EXPECT_FALSE(json::parse(to_json(config)).contains("mamba_cpp"));
}

// What no published model has is under one key, which is not there where nothing differs.
TEST(Config, OptionsOfOurOwnAreUnderOneKey) {
  LanguageModelConfig config;
  config.layer.d_model = 24;
  config.n_layer = 2;
  config.vocab_size = 16;
  EXPECT_FALSE(json::parse(to_json(config)).contains("mamba_cpp"));
  config.layer.gated_norm = true;
  config.layer.gated_norm_epsilon = 1e-4f;
  config.layer.initial_D = 0;
  const json saved = json::parse(to_json(config));
  EXPECT_EQ(saved["mamba_cpp"],
            json::parse(R"({"gated_norm": true, "gated_norm_epsilon": 1e-4, "initial_D": 0.0})"));
  expect_equal(parse_config(saved.dump(), "c"), config.resolved());
  config.source_json = saved.dump();
  config.layer.gated_norm = false;
  config.layer.initial_D = 1;
  EXPECT_FALSE(json::parse(to_json(config)).contains("mamba_cpp"));
}

TEST(Config, SavingAMambaSsmFileTranslatesIt) {
  std::string source = with(mamba_130m, "ssm_cfg", R"({"dt_init": "constant", "d_state": 8})");
  source = with(source.c_str(), "their_option", "1");
  const json saved = json::parse(to_json(parse_config(source, "c")));
  EXPECT_EQ(saved["model_type"], "mamba");
  EXPECT_EQ(saved["architectures"], json::parse(R"(["MambaForCausalLM"])"));
  EXPECT_EQ(saved["time_step_init_scheme"], "constant");
  EXPECT_EQ(saved["state_size"], 8);
  EXPECT_EQ(saved["their_option"], 1);
  for (const char* key : {"d_model", "n_layer", "ssm_cfg"})
    EXPECT_FALSE(saved.contains(key)) << key;
}

TEST(Config, SavingWithoutASource) {
  LanguageModelConfig config;
  config.layer.d_model = 24;
  config.layer.norm_dt_b_c = true;
  config.layer.norm_dt_b_c_epsilon = 3e-5f;
  config.n_layer = 2;
  config.vocab_size = 13;
  config.eos_token_ids = {4, 5};
  const std::string saved = to_json(config);
  expect_equal(parse_config(saved, "c"), config.resolved());
  EXPECT_EQ(json::parse(saved)["architectures"], json::parse(R"(["FalconMambaForCausalLM"])"));
  config.source_json = "[";
  EXPECT_THROW(to_json(config), ArgumentError);
  config.source_json = "[]";
  expect_error<ArgumentError>("to_json: source_json: expected an object, got a list",
                              [&] { to_json(config); });
}

}  // namespace
}  // namespace mamba
