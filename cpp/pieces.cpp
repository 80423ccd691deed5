#include "pieces.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <queue>
#include <stdexcept>

namespace genkit {

namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581
constexpr float unknown_penalty = 10.0f;

size_t char_length(std::string_view text) {
    static const unsigned char lengths[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
    return std::min<size_t>(text.size(), lengths[static_cast<unsigned char>(text[0]) >> 4]);
}

std::string byte_name(int value) {
    static const char digits[] = "0123456789ABCDEF";
    return {'<', '0', 'x', digits[value >> 4], digits[value & 15], '>'};
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

void PrefixSet::sort() { std::sort(entries_.begin(), entries_.end()); }

bool PrefixSet::step(Walk& walk, unsigned char byte) const {
    const size_t depth = walk.depth;
    auto at = [depth](const std::pair<std::string_view, int>& entry) {  // an entry that ends comes before all bytes
        return depth < entry.first.size() ? static_cast<unsigned char>(entry.first[depth]) : -1;
    };
    auto low = std::partition_point(entries_.begin() + static_cast<std::ptrdiff_t>(walk.low),
                                    entries_.begin() + static_cast<std::ptrdiff_t>(walk.high),
                                    [&](const auto& entry) { return at(entry) < byte; });
    auto high = std::partition_point(low, entries_.begin() + static_cast<std::ptrdiff_t>(walk.high),
                                     [&](const auto& entry) { return at(entry) <= byte; });
    walk = {static_cast<size_t>(low - entries_.begin()), static_cast<size_t>(high - entries_.begin()), depth + 1};
    return low != high;
}

int PrefixSet::id(const Walk& walk) const {
    return entries_[walk.low].first.size() == walk.depth ? entries_[walk.low].second : -1;
}

size_t PrefixSet::longest(std::string_view text) const {
    size_t found = 0;
    if (entries_.empty()) return found;
    Walk walk = begin();
    for (size_t i = 0; i < text.size() && step(walk, static_cast<unsigned char>(text[i])); ++i) {
        if (id(walk) >= 0) found = i + 1;
    }
    return found;
}

Pieces::Pieces(std::vector<std::string> texts, std::vector<float> scores, std::vector<uint8_t> types, std::string charsmap,
               Settings settings)
    : texts_(std::move(texts)), scores_(std::move(scores)), types_(std::move(types)), charsmap_(std::move(charsmap)),
      settings_(settings), lowest_(FLT_MAX) {
    if (scores_.size() != texts_.size() || types_.size() != texts_.size() || texts_.size() > INT32_MAX) {
        throw std::invalid_argument("pieces, scores and types of different lengths");
    }
    if (!charsmap_.empty()) {
        uint32_t size = 0;
        if (charsmap_.size() > sizeof size) std::memcpy(&size, charsmap_.data(), sizeof size);
        if (size < 4 || size % 4 != 0 || size >= charsmap_.size() - sizeof size || charsmap_.back() != 0) {
            throw std::invalid_argument("precompiled_charsmap is no double array with its texts");
        }
        map_units_ = size / 4;
    }
    std::fill(std::begin(bytes_), std::end(bytes_), -1);
    for (size_t i = 0; i < texts_.size(); ++i) {
        const int id = static_cast<int>(i);
        const std::string& text = texts_[i];
        if (text.empty()) throw std::invalid_argument("piece " + std::to_string(i) + " is empty");
        if (!std::isfinite(scores_[i])) throw std::invalid_argument("score " + std::to_string(i) + " is no number");
        switch (types_[i]) {
            case normal:
                lowest_ = std::min(lowest_, scores_[i]);
                [[fallthrough]];
            case user_defined:
            case unused:
                if (!ids_.emplace(text, id).second) throw std::invalid_argument("piece " + std::to_string(i) + " is there twice");
                tree_.add(text, id);
                if (types_[i] == user_defined) user_defined_.add(text, id);
                break;
            case unknown:
                if (unknown_ >= 0) throw std::invalid_argument("piece " + std::to_string(i) + " is a second unknown one");
                unknown_ = id;
                break;
            case byte: {
                int value = 0;
                while (value < 256 && text != byte_name(value)) ++value;
                if (value == 256) {
                    throw std::invalid_argument("piece " + std::to_string(i) + " is of type byte and no <0x00> to <0xFF>");
                }
                bytes_[value] = id;
                break;
            }
            case control: break;
            default: throw std::invalid_argument("piece " + std::to_string(i) + " has type " + std::to_string(types_[i]));
        }
    }
    tree_.sort();
    user_defined_.sort();
}

// What the longest prefix in the map becomes (NUL-ended), and its length; 0 where no prefix is in it. A unit of the array:
// bits 0-7 the byte that leads here, 8 whether a value follows, 9-31 where the followers are; bit 31 marks a value.
std::pair<const char*, size_t> Pieces::mapped(std::string_view text) const {
    const char* units = charsmap_.data() + 4;
    const char* replacements = units + 4 * map_units_;
    const size_t replacements_size = charsmap_.size() - 4 - 4 * map_units_;
    auto unit_at = [&](size_t i) {
        uint32_t unit;
        std::memcpy(&unit, units + 4 * i, sizeof unit);
        return unit;
    };
    auto followers = [](uint32_t unit) { return static_cast<size_t>(unit >> 10) << ((unit & (1u << 9)) >> 6); };
    std::pair<const char*, size_t> found = {nullptr, 0};
    size_t node = followers(unit_at(0));
    for (size_t i = 0; i < text.size(); ++i) {
        const unsigned char byte = static_cast<unsigned char>(text[i]);
        node ^= byte;
        if (node >= map_units_) break;
        const uint32_t unit = unit_at(node);
        if ((unit & (1u << 31 | 0xff)) != byte) break;
        node ^= followers(unit);
        if (node >= map_units_) break;
        if (unit >> 8 & 1) {
            const size_t value = unit_at(node) & 0x7fffffff;
            if (value < replacements_size) found = {replacements + value, i + 1};
        }
    }
    return found;
}

std::pair<std::string_view, size_t> Pieces::normalized_prefix(std::string_view text) const {
    if (const size_t length = user_defined_.longest(text)) return {text.substr(0, length), length};
    if (map_units_ > 0) {
        const auto [replacement, length] = mapped(text);
        if (length > 0) return {replacement, length};
    }
    const size_t length = char_length(text);
    return {text.substr(0, length), length};
}

std::string Pieces::normalize(std::string_view text, bool dummy_space) const {
    std::string out;
    const bool trim = settings_.remove_extra_whitespaces;
    const std::string_view space = settings_.escape_whitespaces ? space_mark : " ";
    if (trim) {
        while (!text.empty()) {
            const auto [piece, length] = normalized_prefix(text);
            if (piece != " ") break;
            text.remove_prefix(length);
        }
    }
    if (text.empty()) return out;
    out.reserve(text.size() * 3);
    if (dummy_space && !settings_.whitespace_as_suffix) out += space;
    bool after_space = trim;
    while (!text.empty()) {
        auto [piece, length] = normalized_prefix(text);
        while (after_space && !piece.empty() && piece[0] == ' ') piece.remove_prefix(1);
        for (char c : piece) {
            if (c == ' ') out += space;
            else out += c;
        }
        if (!piece.empty()) after_space = trim && piece.back() == ' ';
        text.remove_prefix(length);
    }
    if (trim) {
        while (ends_with(out, space)) out.resize(out.size() - space.size());
    }
    if (dummy_space && settings_.whitespace_as_suffix) out += space;
    return out;
}

// Neighbours whose joined text is a piece are joined, the best score first, of equal ones the leftmost.
Pieces::Cut Pieces::merges(std::string_view text) const {
    struct Symbol {
        std::string_view text;
        int before, after;
        bool frozen;  // user-defined: joined with nothing
    };
    struct Pair {
        float score;
        int left, right;
        size_t size;
        bool operator<(const Pair& other) const {
            return score < other.score || (score == other.score && left > other.left);
        }
    };
    std::vector<Symbol> symbols;
    std::priority_queue<Pair> pairs;
    std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> parts;  // of unused pieces
    auto consider = [&](int left, int right) {
        if (left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen) return;
        const std::string_view joined(symbols[left].text.data(), symbols[left].text.size() + symbols[right].text.size());
        const auto piece = ids_.find(joined);
        if (piece == ids_.end()) return;
        pairs.push({scores_[piece->second], left, right, joined.size()});
        if (types_[piece->second] == unused) parts[joined] = {symbols[left].text, symbols[right].text};
    };
    for (std::string_view rest = text; !rest.empty();) {
        size_t length = user_defined_.longest(rest);
        const bool frozen = length > 0;
        if (!frozen) length = char_length(rest);
        const int i = static_cast<int>(symbols.size());
        symbols.push_back({rest.substr(0, length), i - 1, length == rest.size() ? -1 : i + 1, frozen});
        rest.remove_prefix(length);
    }
    for (size_t i = 1; i < symbols.size(); ++i) consider(static_cast<int>(i) - 1, static_cast<int>(i));
    while (!pairs.empty()) {
        const Pair best = pairs.top();
        pairs.pop();
        Symbol &left = symbols[best.left], &right = symbols[best.right];
        if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != best.size) continue;
        left.text = std::string_view(left.text.data(), best.size);
        left.after = right.after;
        if (right.after >= 0) symbols[right.after].before = best.left;
        right.text = {};
        consider(left.before, best.left);
        consider(best.left, left.after);
    }
    Cut cut;
    std::vector<std::string_view> open;
    for (int i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].after) {
        open.push_back(symbols[i].text);
        while (!open.empty()) {
            const std::string_view piece = open.back();
            open.pop_back();
            const auto known = ids_.find(piece);
            const int id = known == ids_.end() ? -1 : known->second;
            const auto part = id >= 0 && types_[id] == unused ? parts.find(piece) : parts.end();
            if (part == parts.end()) {
                cut.emplace_back(piece, id);
            } else {
                open.push_back(part->second.second);
                open.push_back(part->second.first);
            }
        }
    }
    return cut;
}

// The path with the largest sum of scores; sums in float32, as the original (0.2.3) has them, for its ties.
Pieces::Cut Pieces::likeliest(std::string_view text) const {
    struct Node {
        int id = -1;
        float score = 0;
        size_t start = SIZE_MAX;
    };
    const float unknown_score = lowest_ - unknown_penalty;
    std::vector<Node> ends(text.size() + 1);
    for (size_t start = 0; start < text.size();) {
        const float here = ends[start].score;
        const size_t length = char_length(text.substr(start));
        bool single = false;
        PrefixSet::Walk walk = tree_.begin();
        for (size_t end = start; end < text.size() && tree_.step(walk, static_cast<unsigned char>(text[end]));) {
            ++end;
            const int id = tree_.id(walk);
            if (id < 0 || types_[id] == unused) continue;
            // A user-defined piece has a bonus, so that it is always taken: as version 0.2.3 of the original counts it.
            const float score = types_[id] == user_defined ? static_cast<float>(end - start) * 0.1f - 0.1f : scores_[id];
            const float candidate = score + here;
            if (ends[end].start == SIZE_MAX || candidate > ends[end].score) ends[end] = {id, candidate, start};
            if (end - start == length) single = true;
        }
        if (!single) {
            Node& end = ends[start + length];
            const float candidate = unknown_score + here;
            if (end.start == SIZE_MAX || candidate > end.score) end = {-1, candidate, start};
        }
        start += length;
    }
    Cut cut;
    for (size_t end = text.size(); end > 0; end = ends[end].start) {
        cut.emplace_back(text.substr(ends[end].start, end - ends[end].start), ends[end].id);
    }
    std::reverse(cut.begin(), cut.end());
    return cut;
}

std::vector<int32_t> Pieces::encode(std::string_view text, bool dummy_space) const {
    const std::string normalized = normalize(text, dummy_space);
    std::vector<int32_t> ids;
    bool after_unknown = false;
    for (const auto& [piece, id] : settings_.unigram ? likeliest(normalized) : merges(normalized)) {
        if (id >= 0) {
            ids.push_back(id);
        } else if (settings_.byte_fallback) {
            for (char c : piece) {
                const int byte_id = bytes_[static_cast<unsigned char>(c)];
                if (byte_id >= 0 || unknown_ >= 0) ids.push_back(byte_id >= 0 ? byte_id : unknown_);
            }
        } else if (unknown_ >= 0 && !(settings_.fuse_unknown && after_unknown)) {
            ids.push_back(unknown_);
        }
        after_unknown = id < 0;
    }
    return ids;
}

}  // namespace genkit
