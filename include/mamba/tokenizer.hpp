// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

struct TokenizerTables;  // what a tokenizer.json says

// Constant once made; copies share what was read. Any number of threads may use one at once.
class Tokenizer {
 public:
  // One id per byte: for models with a vocabulary of 256.
  static Tokenizer bytes() { return Tokenizer(); }
  // A move is a copy too: what was moved from is what it was.
  Tokenizer(const Tokenizer&) = default;
  Tokenizer& operator=(const Tokenizer&) = default;
  // A tokenizer.json of Hugging Face's tokenizers, or the folder that it lies in: byte-level BPE,
  // as GPT-NeoX (the published Mamba checkpoints'), GPT-2, Falcon, Llama 3 and Qwen have it. NFC or
  // no normalizer; ByteLevel, Split, Digits and Punctuation in any Sequence; special tokens before
  // and after a text by TemplateProcessing. What is broken, or has a part that is not known here,
  // is a FormatError naming file and field.
  static Tokenizer load(const std::string& path);

  // One more than the largest id. (A model may have more rows than its tokenizer has tokens.)
  std::int64_t vocab_size() const;

  // As Hugging Face's encode(), without truncation or padding. Special tokens written out in the
  // text are taken for what they name. What is not UTF-8 is read as U+FFFD; bytes() takes any.
  // `special_tokens`: those that the file puts before and after a text are there (none in published
  // Mamba checkpoints'); false for what goes on from an earlier text. A text that one of the file's
  // regular expressions takes too long for is an ArgumentError.
  std::vector<std::int32_t> encode(std::string_view text, bool special_tokens = true) const;
  // The bytes of the ids. A character of several bytes is whole only when all of its ids are there:
  // TextStream waits for that. An id without a token gives U+FFFD (models have more rows than their
  // tokenizers have tokens); a negative one is an ArgumentError.
  std::string decode(const std::vector<std::int32_t>& ids) const;

 private:
  Tokenizer() = default;
  std::shared_ptr<const TokenizerTables> tables_;  // none: bytes
};

// Text out of tokens as they come, in whole characters only: the bytes of one that is not complete
// are held back. Bytes that can become no character come out as U+FFFD.
class TextStream {
 public:
  TextStream() = default;
  // Goes on where another stopped.
  explicit TextStream(std::string held) : held_(std::move(held)) {}

  // The characters that `bytes` (of Tokenizer::decode) complete, often none.
  std::string push(std::string_view bytes);
  // At the end of the text: U+FFFD if a character was left incomplete, else nothing.
  std::string finish();
  const std::string& held() const { return held_; }  // at most 3 bytes

 private:
  std::string held_;
};

}  // namespace mamba
