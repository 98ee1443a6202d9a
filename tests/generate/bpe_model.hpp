// A small model of byte pair encoding: one whose text is laid down, and whose tokens hold several
// characters, as those of published models do. (With a byte model a token is one byte, and what
// goes wrong inside of a token or across several is not seen.)
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/tokenizer.hpp>

#include "files.hpp"

namespace mamba::testing {

// The printed form of a byte in a tokenizer.json (ByteLevel), in UTF-8: itself where it is a
// printable character of Latin-1, else one of those from U+0100 on.
inline std::string byte_level(const std::string& bytes) {
  std::string text;
  const auto printable = [](int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
  };
  for (const char c : bytes) {
    const int byte = static_cast<unsigned char>(c);
    int code = byte;
    if (!printable(byte)) {
      code = 0x100;
      for (int other = 0; other < byte; ++other) code += printable(other) ? 0 : 1;
    }
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xC0 | code >> 6);
      text += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  return text;
}

inline std::string json_string(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

// By id: 0 ends a text, 1 to 256 are the bytes, and then come `words` of several bytes, each after
// its beginnings, out of which it is merged.
inline std::vector<std::string> bpe_tokens(const std::vector<std::string>& words) {
  std::vector<std::string> tokens{"<|endoftext|>"};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(std::string(1, static_cast<char>(byte)));
  for (const std::string& word : words) {
    for (std::size_t length = 2; length <= word.size(); ++length) {
      const std::string token = word.substr(0, length);
      if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) tokens.push_back(token);
    }
  }
  return tokens;
}

// The tokenizer.json of such tokens.
inline std::string bpe_tokenizer(const std::vector<std::string>& tokens) {
  std::string merges;
  for (std::size_t id = 257; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    merges += (merges.empty() ? "[" : ",[") +
              json_string(byte_level(token.substr(0, token.size() - 1))) + "," +
              json_string(byte_level(token.substr(token.size() - 1))) + "]";
  }
  std::string vocab;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const std::string text = id == 0 ? tokens[0] : byte_level(tokens[id]);
    vocab += (id == 0 ? "" : ",") + json_string(text) + ":" + std::to_string(id);
  }
  const std::string byte_level_step =
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,)"
         R"("content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,)"
         R"("normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":)" +
         byte_level_step + R"(,"post_processor":)" + byte_level_step + R"(,"decoder":)" +
         byte_level_step +
         R"(,"model":{"type":"BPE","dropout":null,"unk_token":null,)"
         R"("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,)"
         R"("byte_fallback":false,"vocab":{)" +
         vocab + R"(},"merges":[)" + merges + "]}}";
}

// Its tokens, and a model that writes them in that order, after the first of them: its layer adds
// nothing, so that the next token is a matter of the last one alone.
struct BpeModel {
  std::vector<std::string> pieces;
  Tokenizer tokenizer;
  std::vector<std::int32_t> ids;  // of the pieces
  LanguageModelConfig config;

  // Writes config.json, model.safetensors and tokenizer.json into `folder`. The pieces differ.
  BpeModel(const std::string& folder, std::vector<std::string> text)
      : pieces(std::move(text)), tokenizer(written_tokenizer(folder)) {
    const std::vector<std::string> tokens = bpe_tokens(pieces);
    for (const std::string& piece : pieces) {
      const auto place = std::find(tokens.begin(), tokens.end(), piece);
      ids.push_back(static_cast<std::int32_t>(place - tokens.begin()));
    }
    config.layer.d_model = 32;
    config.layer.d_state = 1;
    config.n_layer = 1;
    config.vocab_size = tokenizer.vocab_size();
    config.tie_embeddings = false;
    config = config.resolved();
    LanguageModelWeights weights = random_model_weights(config, DType::f32, 1);
    const auto clear = [](Tensor& tensor) {
      std::fill_n(tensor.data<float>(), tensor.count(), 0.0f);
    };
    clear(weights.embedding);
    clear(weights.head);
    clear(weights.stack.layers[0].out_proj);
    const std::int64_t width = config.layer.d_model;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto place = static_cast<std::int64_t>(i);
      weights.embedding.data<float>()[ids[i] * width + place] = 1;
      weights.head.data<float>()[ids[i + 1] * width + place] = 1;
    }
    LanguageModel(config, std::move(weights)).save(folder);
  }

  std::string text(std::size_t first, std::size_t end) const {
    std::string result;
    for (std::size_t i = first; i < end; ++i) result += pieces[i];
    return result;
  }

 private:
  Tokenizer written_tokenizer(const std::string& folder) const {
    std::filesystem::create_directories(folder);
    write_file(folder + "/tokenizer.json", bpe_tokenizer(bpe_tokens(pieces)));
    return Tokenizer::load(folder);
  }
};

// Stop strings that are inside of a token, the end of one, across two and three, and a character
// of several bytes whose bytes are not one token.
inline std::vector<std::string> pieces_with_stops() {
  return {"A", "b", ".\"", "c", "\n    ", "d", " and", "e", "\xC3", "\xA9", "f", "..)", "i"};
}

}  // namespace mamba::testing
