// Configurations of Mamba-2: both published forms, what may be missing, and what cannot be.
#include <mamba/config.hpp>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "model/layer_variants.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using nlohmann::json;
using testing::expect_error;

constexpr float infinity = std::numeric_limits<float>::infinity();

// state-spaces/mamba2-130m.
constexpr const char* mamba2_130m = R"({"d_model": 768, "d_intermediate": 0, "n_layer": 24,
  "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {},
  "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
  "pad_vocab_size_multiple": 16, "tie_embeddings": true})";

// Codestral Mamba 7B as transformers 4 writes it; transformers 5 has {"__float__": "Infinity"}.
constexpr const char* codestral = R"({"architectures": ["Mamba2ForCausalLM"], "bos_token_id": 0,
  "chunk_size": 256, "conv_kernel": 4, "eos_token_id": 2, "expand": 2, "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.1, "layer_norm_epsilon": 1e-05,
  "model_type": "mamba2", "n_groups": 8, "norm_before_gate": true, "num_heads": 128,
  "num_hidden_layers": 64, "pad_token_id": 1, "rescale_prenorm_residual": false,
  "residual_in_fp32": true, "rms_norm": true, "state_size": 128, "tie_word_embeddings": false,
  "time_step_floor": 0.0001, "time_step_limit": [0.0, Infinity], "time_step_max": 0.1,
  "time_step_min": 0.001, "time_step_rank": 256, "torch_dtype": "bfloat16", "use_bias": false,
  "use_cache": true, "use_conv_bias": true, "vocab_size": 32768})";

// The source with this text in place of the value of a key; nullptr: without the key.
std::string with(const std::string& source, const std::string& key, const char* value) {
  const std::size_t at = source.find("\"" + key + "\":");
  if (at == std::string::npos) return "{\"" + key + "\": " + value + ", " + source.substr(1);
  std::size_t end = source.find_first_of("[{,}", at);
  if (source[end] == '[' || source[end] == '{') {
    end = source.find(source[end] == '[' ? ']' : '}', end) + 1;
  }
  const std::size_t next = source.find_first_not_of(", \n", end);
  if (value == nullptr) return source.substr(0, at) + source.substr(next);
  return source.substr(0, at) + "\"" + key + "\": " + value + source.substr(end);
}

void expect_equal(const LanguageModelConfig& a, const LanguageModelConfig& b) {
  EXPECT_EQ(a.layer.mixer, b.layer.mixer);
  EXPECT_EQ(a.layer.d_model, b.layer.d_model);
  EXPECT_EQ(a.layer.d_state, b.layer.d_state);
  EXPECT_EQ(a.layer.d_conv, b.layer.d_conv);
  EXPECT_EQ(a.layer.d_inner, b.layer.d_inner);
  EXPECT_EQ(a.layer.head_dim, b.layer.head_dim);
  EXPECT_EQ(a.layer.groups, b.layer.groups);
  EXPECT_EQ(a.layer.use_bias, b.layer.use_bias);
  EXPECT_EQ(a.layer.use_conv_bias, b.layer.use_conv_bias);
  EXPECT_EQ(a.layer.rmsnorm, b.layer.rmsnorm);
  EXPECT_EQ(a.layer.norm_before_gate, b.layer.norm_before_gate);
  EXPECT_EQ(a.layer.gated_norm_epsilon, b.layer.gated_norm_epsilon);
  EXPECT_EQ(a.layer.initial_D, b.layer.initial_D);
  EXPECT_EQ(a.layer.dt_min, b.layer.dt_min);
  EXPECT_EQ(a.layer.dt_max, b.layer.dt_max);
  EXPECT_EQ(a.layer.dt_floor, b.layer.dt_floor);
  EXPECT_EQ(a.layer.dt_low, b.layer.dt_low);
  EXPECT_EQ(a.layer.dt_high, b.layer.dt_high);
  EXPECT_EQ(a.n_layer, b.n_layer);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.vocab_rows, b.vocab_rows);
  EXPECT_EQ(a.tie_embeddings, b.tie_embeddings);
  EXPECT_EQ(a.norm_epsilon, b.norm_epsilon);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
}

TEST(Mamba2Config, MambaSsm) {
  const LanguageModelConfig config = parse_config(mamba2_130m, "c");
  EXPECT_EQ(config.layer.mixer, MixerKind::mamba2);
  EXPECT_STREQ(name_of(config.layer.mixer), "Mamba2");
  EXPECT_EQ(config.layer.d_state, 128);
  EXPECT_EQ(config.layer.d_inner, 1536);
  EXPECT_EQ(config.layer.head_dim, 64);
  EXPECT_EQ(config.layer.groups, 1);
  EXPECT_EQ(config.layer.conv_channels(), 1792);
  EXPECT_TRUE(config.layer.rmsnorm);
  EXPECT_FALSE(config.layer.norm_before_gate);
  EXPECT_EQ(config.layer.dt_low, 0);
  EXPECT_EQ(config.layer.dt_high, infinity);
  EXPECT_EQ(config.vocab_size, 50277);
  EXPECT_EQ(config.vocab_rows, 50288);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::int32_t>{0});
  const LayerConfig every = parse_config(with(mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2",
    "d_state": 64, "d_conv": 3, "expand": 4, "headdim": 96, "ngroups": 2, "norm_before_gate": true,
    "bias": true, "conv_bias": false, "dt_limit": [0.01, 0.5], "dt_min": 0.002, "dt_max": 0.2,
    "dt_init_floor": 2e-4, "chunk_size": 128, "A_init_range": [1, 16], "D_has_hdim": false,
    "rmsnorm": false, "d_ssm": null, "conv_init": null, "use_mem_eff_path": true})"),
                                         "c")
                                .layer;
  EXPECT_EQ(every.d_state, 64);
  EXPECT_EQ(every.d_conv, 3);
  EXPECT_EQ(every.d_inner, 3072);
  EXPECT_EQ(every.head_dim, 96);
  EXPECT_EQ(every.groups, 2);
  EXPECT_FALSE(every.rmsnorm);
  EXPECT_TRUE(every.norm_before_gate);
  EXPECT_TRUE(every.use_bias);
  EXPECT_FALSE(every.use_conv_bias);
  EXPECT_EQ(every.dt_low, 0.01f);
  EXPECT_EQ(every.dt_high, 0.5f);
  EXPECT_EQ(every.dt_min, 0.002f);
  EXPECT_EQ(every.dt_max, 0.2f);
  EXPECT_EQ(every.dt_floor, 2e-4f);
}

TEST(Mamba2Config, HuggingFace) {
  const LanguageModelConfig config = parse_config(codestral, "c");
  EXPECT_EQ(config.layer.mixer, MixerKind::mamba2);
  EXPECT_EQ(config.layer.d_inner, 8192);
  EXPECT_EQ(config.layer.head_dim, 64);
  EXPECT_EQ(config.layer.groups, 8);
  EXPECT_EQ(config.layer.d_state, 128);
  EXPECT_FALSE(config.layer.norm_before_gate) << "the key does nothing in transformers";
  EXPECT_EQ(config.layer.dt_high, infinity);
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::int32_t>{2});
  // The mixer's norm has the epsilon of the others.
  EXPECT_EQ(
      parse_config(with(codestral, "layer_norm_epsilon", "1e-3"), "c").layer.gated_norm_epsilon,
      1e-3f);
  const auto limits = [](const char* text) {
    const LayerConfig layer = parse_config(with(codestral, "time_step_limit", text), "c").layer;
    return std::pair(layer.dt_low, layer.dt_high);
  };
  EXPECT_EQ(limits(R"([0.001, {"__float__": "Infinity"}])"), std::pair(0.001f, infinity));
  EXPECT_EQ(limits("[0.001, 0.5]"), std::pair(0.001f, 0.5f));
  EXPECT_EQ(limits(nullptr), std::pair(0.0f, infinity));
  // What is missing is what transformers takes for it; the number of heads follows.
  const LanguageModelConfig least = parse_config(
      R"({"model_type": "mamba2", "hidden_size": 512, "num_hidden_layers": 2, "vocab_size": 50})",
      "c");
  EXPECT_EQ(least.layer.groups, 8);
  EXPECT_EQ(least.layer.head_dim, 64);
  EXPECT_EQ(least.layer.d_state, 128);
  EXPECT_EQ(least.eos_token_ids, std::vector<std::int32_t>{2});
}

TEST(Mamba2Config, FieldsThatCannotBeAreNamed) {
  struct Wrong {
    const char* source;
    const char* key;
    const char* value;
    const char* text;
  };
  const std::vector<Wrong> wrongs{
      {codestral, "num_heads", "127",
       "num_heads: expected expand hidden_size, 8192, over head_dim, 64, got 127"},
      {codestral, "head_dim", "63",
       "num_heads: expected expand hidden_size, 8192, over head_dim, 63, got 128"},
      {codestral, "head_dim", "257", "head_dim: expected 1 to 256, got 257"},
      {codestral, "n_groups", "7", "groups: expected a divisor of heads, 128, got 7"},
      {codestral, "n_groups", "0", "n_groups: expected 1 to 2147483647, got 0"},
      {codestral, "state_size", "257", "state_size: expected 1 to 256, got 257"},
      {codestral, "time_step_limit", "0.1", "time_step_limit: expected two numbers, got 0.1"},
      {codestral, "time_step_limit", "[0.1]", "time_step_limit: expected two numbers, got a list"},
      {codestral, "time_step_limit", "[0, null]",
       "time_step_limit: expected two numbers, got a list with null"},
      {codestral, "time_step_limit", "[0.5, 0.1]",
       "dt_high: expected a number of at least dt_low, or infinity, got 0.1"},
      {codestral, "time_step_limit", "[0.5, NaN]",
       "dt_high: expected a number of at least dt_low, or infinity, got nan"},
      {codestral, "time_step_limit", "[-0.5, 1]",
       "dt_low: expected a number of at least 0, got -0.5"},
      {codestral, "rms_norm", "false", "rms_norm: expected true, got false"},
      {codestral, "mamba_cpp", R"({"gated_norm": true})",
       "mamba_cpp.gated_norm: expected an option of this version, got true"},
      {mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "dt_rank": 3})",
       "ssm_cfg.dt_rank: expected an option of Mamba2, got 3"},
      {mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "rmsnorm": 1})",
       "ssm_cfg.rmsnorm: expected true or false, got 1"},
      {mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "D_has_hdim": true})",
       "ssm_cfg.D_has_hdim: expected false (this library has one D for a head), got true"},
      {mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "d_ssm": 1024})",
       "ssm_cfg.d_ssm: expected expand d_model (this library has no MLP beside the recurrence), "
       "got 1024"},
      {mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "headdim": 100})",
       "head_dim: expected a divisor of d_inner, 1536, got 100"},
      {mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "ngroups": 5})",
       "groups: expected a divisor of heads, 24, got 5"},
      {mamba2_130m, "attn_layer_idx", "[9, 18]",
       "attn_layer_idx: expected an empty list (this library has no attention), got a list"},
      {mamba2_130m, "d_intermediate", "64",
       "d_intermediate: expected 0 (this library has no MLP layers), got 64"},
      {R"({"model_type": "bamba", "hidden_size": 64, "num_attention_heads": 4})", "vocab_size", "9",
       "model_type: expected mamba or falcon_mamba or mamba2 (this library has no attention), got "
       "\"bamba\""},
  };
  for (const Wrong& wrong : wrongs) {
    const std::string text = with(wrong.source, wrong.key, wrong.value);
    expect_error<FormatError>("x/config.json: " + std::string(wrong.text),
                              [&] { parse_config(text, "x/config.json"); });
  }
}

TEST(Mamba2Config, ResolvedFillsInTheRulesAndNamesWhatCannotBe) {
  LayerConfig config;
  config.mixer = MixerKind::mamba2;
  config.d_model = 96;
  const LayerConfig resolved = config.resolved();
  EXPECT_EQ(resolved.d_state, 128);
  EXPECT_EQ(resolved.d_inner, 192);
  EXPECT_EQ(resolved.head_dim, 64);
  EXPECT_EQ(resolved.groups, 1);
  EXPECT_EQ(resolved.conv_channels(), 448);
  config.mixer = MixerKind::mamba1;
  EXPECT_EQ(config.resolved().d_state, 16);
  EXPECT_EQ(config.resolved().conv_channels(), 192);
  const auto layer = [](const std::string& text, auto change) {
    LayerConfig wrong = testing::mamba2_of(32, 8, 4, 16, 2);
    change(wrong);
    expect_error<ArgumentError>("LayerConfig: " + text, [&] { wrong.resolved(); });
  };
  layer("d_model: expected 1 to 2147483647, got 0", [](auto& c) { c.d_model = 0; });
  layer("d_state: expected 1 to 256, got 257", [](auto& c) { c.d_state = 257; });
  layer("head_dim: expected 1 to 256, got -1", [](auto& c) { c.head_dim = -1; });
  layer("head_dim: expected a divisor of d_inner, 64, got 24", [](auto& c) { c.head_dim = 24; });
  layer("head_dim: expected a divisor of d_inner, 70, got 16", [](auto& c) { c.d_inner = 70; });
  layer("groups: expected a divisor of heads, 4, got 3", [](auto& c) { c.groups = 3; });
  layer("groups: expected 1 to 2147483647, got -2", [](auto& c) { c.groups = -2; });
  layer("gated_norm: expected false (Mamba-2 has a norm of its own), got true",
        [](auto& c) { c.gated_norm = true; });
  layer("norm_dt_b_c: expected false (Mamba-1 has it), got true",
        [](auto& c) { c.norm_dt_b_c = true; });
  layer("dt_rank: expected 0 (Mamba-1 has it), got 4", [](auto& c) { c.dt_rank = 4; });
  const auto to_mamba1 = [](auto& c) {
    c.mixer = MixerKind::mamba1;
    c.head_dim = c.groups = 0;
  };
  layer("head_dim: expected 0 (Mamba-2 has it), got 8", [&](auto& c) {
    to_mamba1(c);
    c.head_dim = 8;
  });
  layer("groups: expected 0 (Mamba-2 has it), got 2", [&](auto& c) {
    to_mamba1(c);
    c.groups = 2;
  });
  layer("rmsnorm: expected true (Mamba-2 has it), got false", [&](auto& c) {
    to_mamba1(c);
    c.rmsnorm = false;
  });
  layer("norm_before_gate: expected false (Mamba-2 has it), got true", [&](auto& c) {
    to_mamba1(c);
    c.norm_before_gate = true;
  });
  layer("dt_low: expected 0 (Mamba-2 has it), got 0.5", [&](auto& c) {
    to_mamba1(c);
    c.dt_low = 0.5f;
  });
  layer("dt_high: expected infinity (Mamba-2 has it), got 2", [&](auto& c) {
    to_mamba1(c);
    c.dt_high = 2;
  });
  layer("gated_norm_epsilon: expected a positive number, got 0",
        [](auto& c) { c.gated_norm_epsilon = 0; });
  layer("dt_high: expected a number of at least dt_low, or infinity, got 0.5", [](auto& c) {
    c.dt_low = 1;
    c.dt_high = 0.5f;
  });
}

TEST(Mamba2Config, SavedAndReadAgainIsEqual) {
  std::vector<std::string> sources{mamba2_130m, codestral};
  sources.push_back(with(codestral, "time_step_limit", R"([0.0, {"__float__": "Infinity"}])"));
  sources.push_back(with(codestral, "time_step_limit", "[0.25, 2]"));
  sources.push_back(with(codestral, "layer_norm_epsilon", "1e-2"));
  sources.push_back(with(mamba2_130m, "ssm_cfg",
                         R"({"layer": "Mamba2", "norm_before_gate": true, "headdim": 32})"));
  sources.push_back(with(mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "rmsnorm": false})"));
  for (const std::string& source : sources) {
    const LanguageModelConfig config = parse_config(source, "c");
    const std::string saved = to_json(config);
    const LanguageModelConfig again = parse_config(saved, "c");
    expect_equal(again, config);
    EXPECT_EQ(to_json(again), saved);
  }
  // Files of Hugging Face come back with every value they had. nlohmann has no infinity.
  const std::string strict =
      with(codestral, "time_step_limit", R"([0.0, {"__float__": "Infinity"}])");
  const json before = json::parse(strict), saved = json::parse(to_json(parse_config(strict, "c")));
  for (const auto& [key, value] : before.items()) EXPECT_EQ(saved[key], value) << key;
  EXPECT_FALSE(saved.contains("mamba_cpp"));
  EXPECT_NE(to_json(parse_config(codestral, "c")).find("Infinity"), std::string::npos);
}

TEST(Mamba2Config, SavingAMambaSsmFileTranslatesIt) {
  const json saved = json::parse(to_json(parse_config(
      with(with(mamba2_130m, "ssm_cfg", R"({"layer": "Mamba2", "norm_before_gate": true})"),
           "theirs", "1"),
      "c")));
  EXPECT_EQ(saved["model_type"], "mamba2");
  EXPECT_EQ(saved["architectures"], json::parse(R"(["Mamba2ForCausalLM"])"));
  EXPECT_EQ(saved["num_heads"], 24);
  EXPECT_EQ(saved["n_groups"], 1);
  EXPECT_EQ(saved["state_size"], 128);
  EXPECT_EQ(saved["tie_word_embeddings"], true);
  EXPECT_EQ(saved["theirs"], 1);
  EXPECT_FALSE(saved.contains("time_step_limit"));
  EXPECT_FALSE(saved.contains("time_step_init_scheme"));
  EXPECT_EQ(saved["mamba_cpp"], json::parse(R"({"vocab_size": 50277, "norm_before_gate": true})"));
}

// Damage is never more than a FormatError, and what is read is written so that it is read again.
TEST(Mamba2Config, DamagedTextIsRefusedOrKept) {
  testing::Random random(1);
  for (const std::string source : {codestral, mamba2_130m}) {
    int refused = 0;
    for (int trial = 0; trial < 3000; ++trial) {
      std::string damaged = source;
      for (int change = 0; change < 2; ++change) {
        const auto at = static_cast<std::size_t>(
            random.integer(0, static_cast<std::int64_t>(damaged.size()) - 1));
        damaged[at] = "0-e.\"{}[],19"[random.integer(0, 11)];
      }
      try {
        const LanguageModelConfig config = parse_config(damaged, "c");
        expect_equal(parse_config(to_json(config), "c"), config);
      } catch (const FormatError&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 1000);
    EXPECT_LT(refused, 3000);
  }
}

// An epsilon of the mixer's norm alone, and a width that no multiple of d_model is.
TEST(Mamba2Config, OptionsOfOurOwnAreUnderOneKey) {
  LanguageModelConfig config;
  config.layer = testing::mamba2_of(24, 8, 4, 10, 2);
  config.layer.d_inner = 60;
  config.layer.gated_norm_epsilon = 1e-4f;
  config.layer.initial_D = 0;
  config.layer.dt_high = 0.5f;
  config.n_layer = 2;
  config.vocab_size = 16;
  const json saved = json::parse(to_json(config));
  EXPECT_EQ(saved["mamba_cpp"],
            json::parse(R"({"d_inner": 60, "gated_norm_epsilon": 1e-4, "initial_D": 0.0})"));
  EXPECT_EQ(saved["time_step_limit"], json::parse("[0.0, 0.5]"));
  expect_equal(parse_config(saved.dump(), "c"), config.resolved());
}

}  // namespace
}  // namespace mamba
