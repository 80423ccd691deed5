// SentencePiece's encoders (Kudo and Richardson 2018), to the id what its own library gives: the text is normalized, then cut
// by merges (BPE) or by the likeliest path (unigram). No file format in here: text/sentencepiece.py reads those.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace genkit {

// Strings in order, to walk down byte by byte.
class PrefixSet {
  public:
    struct Walk {  // the entries [low, high) begin with the bytes so far
        size_t low, high, depth;
    };
    void add(std::string_view text, int id) { entries_.emplace_back(text, id); }
    void sort();
    Walk begin() const { return {0, entries_.size(), 0}; }
    bool step(Walk& walk, unsigned char byte) const;  // false where nothing goes on so
    int id(const Walk& walk) const;                   // of the entry that ends here, or -1
    size_t longest(std::string_view text) const;      // bytes of the longest entry the text begins with, or 0
    bool empty() const { return entries_.empty(); }

  private:
    std::vector<std::pair<std::string_view, int>> entries_;
};

class Pieces {
  public:
    enum Type : uint8_t { normal = 1, unknown, control, user_defined, unused, byte };
    struct Settings {
        bool unigram = false;
        bool byte_fallback = false;             // unknown characters become their bytes' pieces
        bool remove_extra_whitespaces = false;  // at both ends, and all but one between words
        bool escape_whitespaces = true;         // a space is U+2581 in pieces
        bool whitespace_as_suffix = false;      // the dummy space goes after the text
        bool fuse_unknown = true;               // neighbours that are unknown become one
    };

    // scores are finite; one piece at most is unknown; charsmap is u32 bytes of a darts-clone double array, the array, then
    // NUL-ended replacements. Throws std::invalid_argument for what cannot be.
    Pieces(std::vector<std::string> texts, std::vector<float> scores, std::vector<uint8_t> types, std::string charsmap,
           Settings settings);
    std::string normalize(std::string_view text, bool dummy_space) const;
    std::vector<int32_t> encode(std::string_view text, bool dummy_space) const;

  private:
    using Cut = std::vector<std::pair<std::string_view, int>>;  // -1: no piece
    std::pair<std::string_view, size_t> normalized_prefix(std::string_view text) const;
    std::pair<const char*, size_t> mapped(std::string_view text) const;
    Cut merges(std::string_view text) const;
    Cut likeliest(std::string_view text) const;

    std::vector<std::string> texts_;
    std::vector<float> scores_;
    std::vector<uint8_t> types_;
    std::string charsmap_;
    size_t map_units_ = 0;
    Settings settings_;
    std::unordered_map<std::string_view, int> ids_;
    PrefixSet tree_, user_defined_;
    int unknown_ = -1;
    int bytes_[256];
    float lowest_;
};

}  // namespace genkit
