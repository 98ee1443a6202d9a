// The kinds of characters that tokenizers tell apart.
#pragma once

namespace mamba {

enum class CharacterClass { letter, number, space, other };

CharacterClass class_of(char32_t code);
// What ASCII or Unicode 8 calls punctuation, which is what the files are made for.
bool is_punctuation(char32_t code);

}  // namespace mamba
