// Codes that other people's files keep down the columns of a matrix [k, n], brought into rows [n, k]: see ops.h.
#include <cstring>

#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t tile_bytes_of_row = 64, tile_outputs = 256;  // what is turned at a time stays in a first-level cache

struct TurnArgs {
    const uint32_t* words;  // down: [k bits / 32, n], else [k, n / 8]
    const int32_t* order;   // [k] or null
    uint8_t* out;           // [n, row_bytes]
    int64_t n, k, bits, row_bytes;
    bool down;
};

// Byte p of rows [first, first + count): of 4 bits codes 2p and 2p + 1, the first the low nibble; of 8 bits code p.
void down_bytes(const TurnArgs& a, int64_t p, int64_t first, int64_t count, uint8_t* out) {
    if (!a.order || a.bits == 8) {  // one byte of a word
        const int64_t at = a.order ? a.order[p] : p;
        const uint32_t* w = a.words + at / 4 * a.n + first;
        const int shift = int(at % 4 * 8);
        for (int64_t j = 0; j < count; j++) out[j] = uint8_t(w[j] >> shift);
        return;
    }
    const int64_t low = a.order[2 * p], high = 2 * p + 1 < a.k ? a.order[2 * p + 1] : -1;
    const uint32_t* w = a.words + low / 8 * a.n + first;
    const int shift = int(low % 8 * 4);
    for (int64_t j = 0; j < count; j++) out[j] = uint8_t(w[j] >> shift & 15);
    if (high < 0) return;
    const uint32_t* v = a.words + high / 8 * a.n + first;
    const int up = int(high % 8 * 4);
    for (int64_t j = 0; j < count; j++) out[j] = uint8_t(out[j] | (v[j] >> up & 15) << 4);
}

// The same of words along n, whose bits 4 i hold output 0, 2, 4, 6, 1, 3, 5, 7 of eight. Those of the low nibbles of bytes
// come first, then those of the high ones: in the order of `places`.
constexpr int places[] = {0, 4, 1, 5, 2, 6, 3, 7}, in_order[] = {0, 1, 2, 3, 4, 5, 6, 7};

void along_bytes(const TurnArgs& a, int64_t p, int64_t first, int64_t count, uint8_t* out) {
    const int64_t row = a.n / 8;
    const uint32_t* low = a.words + 2 * p * row + first / 8;
    const uint32_t* high = 2 * p + 1 < a.k ? low + row : nullptr;
    for (int64_t j = 0; j < count / 8; j++) {
        const uint32_t x = low[j], y = high ? high[j] : 0;
        const uint32_t halves[] = {(x & 0x0F0F0F0Fu) | (y & 0x0F0F0F0Fu) << 4, (x >> 4 & 0x0F0F0F0Fu) | (y & 0xF0F0F0F0u)};
        std::memcpy(out + 8 * j, halves, 8);
    }
}

// Byte i of x[j] and byte j of x[i] change places.
void transpose8(uint64_t (&x)[8]) {
    constexpr uint64_t masks[] = {0x00000000FFFFFFFFull, 0x0000FFFF0000FFFFull, 0x00FF00FF00FF00FFull};
    for (int stage = 0, d = 4; d; stage++, d /= 2)
        for (int i = 0; i < 8; i++) {
            if (i & d) continue;
            const uint64_t t = ((x[i] >> 8 * d) ^ x[i + d]) & masks[stage];
            x[i + d] ^= t;
            x[i] ^= t << 8 * d;
        }
}

// Unit: 64 bytes of every row.
void turn(const TurnArgs& a, int64_t begin, int64_t end) {
    uint8_t tile[tile_bytes_of_row][tile_outputs];
    const int64_t used = (a.k * a.bits + 7) / 8;  // bytes of a row; the rest is padding
    const int* place = a.down ? in_order : places;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t first = unit * tile_bytes_of_row, bytes = std::min(tile_bytes_of_row, a.row_bytes - first);
        for (int64_t j = 0; j < a.n; j += tile_outputs) {
            const int64_t count = std::min(tile_outputs, a.n - j);
            for (int64_t p = 0; p < bytes; p++) {
                if (first + p >= used) std::memset(tile[p], 0, size_t(count));
                else if (a.down) down_bytes(a, first + p, j, count, tile[p]);
                else along_bytes(a, first + p, j, count, tile[p]);
            }
            for (int64_t p = 0; p < bytes; p += 8)  // rows are filled up to 64 codes, so to eights of bytes
                for (int64_t i = 0; i < count; i += 8) {
                    uint64_t x[8];
                    for (int64_t b = 0; b < 8; b++) std::memcpy(&x[b], &tile[p + b][i], 8);
                    transpose8(x);
                    for (int64_t r = 0; r < std::min<int64_t>(8, count - i); r++)
                        std::memcpy(a.out + (j + i + place[r]) * a.row_bytes + first + p, &x[r], 8);
                }
        }
    }
}

}  // namespace

Tensor turn_words(const Tensor& words, int64_t bits, int64_t k, bool down, const OptionalTensor& order) {
    const char* op = "turn_words";
    check_dtype(op, "words", words, {DType::i32});
    check_shape(op, "words", words, {-1, -1});
    check_contiguous(op, "words", words);
    if (bits != 4 && !(bits == 8 && down)) fail(op, "bits is " + std::to_string(bits) + "; expected 4, or 8 down");
    const int64_t rows = down ? (k * bits + 31) / 32 : k;
    if (k < 1 || words.dim(0) != rows)
        fail(op, "words is " + words.shape_text() + "; " + std::to_string(k) + " codes ask for " + std::to_string(rows) + " rows");
    if (order) {
        if (!down) fail(op, "order is for words down the columns");
        check_vector(op, "order", *order, DType::i32, k);
        for (int64_t i = 0; i < k; i++)
            if (order->data<int32_t>()[i] < 0 || order->data<int32_t>()[i] >= k)
                fail(op, "order[" + std::to_string(i) + "] is " + std::to_string(order->data<int32_t>()[i]));
    }
    const int64_t n = down ? words.dim(1) : words.dim(1) * 8, row_bytes = round_up(k, tile_depth) * bits / 8;
    Tensor out({n, row_bytes}, DType::u8);
    TurnArgs a{words.data<uint32_t>(), order ? order->data<int32_t>() : nullptr, out.data<uint8_t>(), n, k, bits, row_bytes,
               down};
    parallel_for((row_bytes + tile_bytes_of_row - 1) / tile_bytes_of_row, 1, [](const void* job, int64_t begin, int64_t end) {
        turn(*static_cast<const TurnArgs*>(job), begin, end);
    }, &a);
    return out;
}

}  // namespace genkit
