// The sizes and options of one Mamba layer and of a whole model.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

// The architectures of a layer: what stands between its norm and the residual stream.
enum class MixerKind { mamba1, mamba2 };

// "Mamba1" or "Mamba2", as mamba_ssm calls them.
const char* name_of(MixerKind mixer);

// One layer (Gu & Dao 2023; Dao & Gu 2024; names as in mamba_ssm). Zero means "by the published
// rule".
struct LayerConfig {
  MixerKind mixer = MixerKind::mamba1;
  std::int64_t d_model = 0;  // must be given
  std::int64_t d_state = 0;  // 1 to 256; 0: 16, of Mamba-2 128
  std::int64_t d_conv = 4;
  std::int64_t expand = 2;
  std::int64_t d_inner = 0;  // 0: expand * d_model
  std::int64_t dt_rank = 0;  // 0: ceil(d_model / 16); not of Mamba-2
  bool use_bias = false;     // biases of in_proj and out_proj
  bool use_conv_bias = true;
  bool norm_dt_b_c = false;  // Falcon-Mamba: RMS norm without weight on dt, B and C
  float norm_dt_b_c_epsilon = 1e-6f;
  // y = LayerNorm(scan + D x; weight, bias) silu(z) in place of (scan + D x) silu(z): keeps what is
  // read from a long memory at one scale. Not a published format.
  bool gated_norm = false;
  float gated_norm_epsilon = 1e-5f;  // of Mamba-2's norm too
  // For initialisation only: D, the range of softplus(dt_bias), and the scale of dt_proj.
  float initial_D = 1.0f;
  float dt_min = 1e-3f;
  float dt_max = 0.1f;
  float dt_floor = 1e-4f;
  float dt_scale = 1.0f;
  // Of Mamba-2 alone. It has d_inner / head_dim heads; heads / groups neighbours share B and C, and
  // each group is normed for itself.
  std::int64_t head_dim = 0;      // 1 to 256, divides d_inner; 0: 64
  std::int64_t groups = 0;        // divides heads; 0: 1
  bool rmsnorm = true;            // false: y silu(z) without a norm, and without its weight
  bool norm_before_gate = false;  // RMS(y) silu(z) in place of RMS(y silu(z))
  float dt_low = 0;               // what softplus(dt) is clamped to
  float dt_high = std::numeric_limits<float>::infinity();

  // A copy with the zeros filled in. Impossible sizes are an ArgumentError naming the field.
  LayerConfig resolved() const;
  // How many channels are convolved, and remembered for it: those of x, and of B and C where these
  // have groups. Of a resolved config.
  std::int64_t conv_channels() const { return d_inner + 2 * groups * d_state; }
  // Of Mamba-2; of a resolved config.
  std::int64_t heads() const { return d_inner / head_dim; }
};

// A language model: embedding, n_layer residual layers, final norm, head.
struct LanguageModelConfig {
  LayerConfig layer;
  std::int64_t n_layer = 0;     // must be given
  std::int64_t vocab_size = 0;  // must be given: the ids there are, and the columns of logits
  std::int64_t vocab_rows = 0;  // rows of the embedding, padded; 0: vocab_size rounded up to 8
  bool tie_embeddings = true;   // the head is the embedding
  float norm_epsilon = 1e-5f;
  std::vector<std::int32_t> eos_token_ids;  // ids that end a text; may be empty

  // Everything the file said, as JSON text, so that saving keeps the keys we do not know.
  std::string source_json;

  LanguageModelConfig resolved() const;
};

// config.json as published, with the keys of Hugging Face (model_type mamba, falcon_mamba and
// mamba2) or of mamba_ssm. What this library alone knows (a vocabulary smaller than its padding,
// options of a layer that no published model has, ids that end a text in spite of a
// generation_config.json) is under one key, "mamba_cpp"; absent, a model is as published. A missing
// eos_token_id is what it is to transformers, 0 or in Mamba-2 2; null or an empty list means none.
// A head of which nothing is said is tied. `where` names the file in errors. A mistyped, zero,
// negative or absurdly large field, or a missing one that has no published default, is a
// FormatError naming it.
LanguageModelConfig parse_config(const std::string& json_text, const std::string& where);

// config.json with the keys of Hugging Face. Unknown keys of `source_json` are kept.
std::string to_json(const LanguageModelConfig& config);

}  // namespace mamba
