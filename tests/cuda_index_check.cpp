// Where things lie and how work is split in cuda/, on a processor: each element once and in bounds, fragments as the tables of the PTX ISA
// have them. cuda_index_check SEED. Prints what is wrong; exit 1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); })

namespace genkit {
namespace {

#include "../cuda/kernels.inl"
#include "cuda_workspace.inl"

Workspace workspace() { return filled_workspace(1, 0xa5); }

std::mt19937_64 rng;
int wrong = 0;

void expect(bool right, const std::string& what) {
    if (!right && wrong++ < 20) printf("%s\n", what.c_str());
}
int64_t below(int64_t n) { return int64_t(rng() % uint64_t(n)); }
std::string of(int64_t a, int64_t b = -1) { return " of " + std::to_string(a) + (b < 0 ? "" : " and " + std::to_string(b)); }

// Places given out so far: each in [0, count), once; `all` says whether none is left.
struct Places {
    std::vector<bool> taken;
    int64_t used = 0;
    bool right = true;
    explicit Places(int64_t count) : taken(size_t(count)) {}
    void take(int64_t at) {
        if (at < 0 || at >= int64_t(taken.size()) || taken[size_t(at)]) right = false;
        else taken[size_t(at)] = true, used++;
    }
    bool all() const { return right && used == int64_t(taken.size()); }
};

// ---- cache, codes, scales ----------------------------------------------------------------------------------------------

void check_pages() {
    for (int64_t dim = 1; dim <= 260; dim++)
        for (bool pairs : {false, true}) {
            Places keys(page_keys * dim), values(page_keys * dim);
            for (int64_t slot = 0; slot < page_keys; slot++)
                for (int64_t i = 0; i < dim; i++) keys.take(key_at(pairs, slot, i, dim)), values.take(value_at(pairs, slot, i, dim));
            expect(keys.all() && values.all(), "keys and values of a page" + of(dim, pairs));
        }
}

// Codes of attention_rows.inl, by part: copied once each, and what a lane reads are 4 keys x 2 channels of K, 4 channels x 2 keys of V, where
// sixteen lanes meet in no bank.
template <int blocks32, bool wide>
void check_codes_of_attention() {
    using Place = RowPlace<DType::i8, blocks32, wide>;
    constexpr int dim = Place::dim, part_dim = Place::part_dim;
    Places keys(page_keys * dim), values(page_keys * dim);
    bool right = true;
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < Place::parts; part++) {
            std::vector<int64_t> key_from(size_t(warp_keys) * part_dim, -1), value_from = key_from;  // byte in shared memory -> in the page
            for (int e = 0; e < Place::loads; e++)
                for (int lane = 0; lane < 32; lane++)
                    for (int i = 0; i < 16; i++) {
                        const size_t to = size_t(512 * e + 16 * lane + i);
                        key_from[to] = coded_key(lane, half, dim) + coded_key_load(e, part, part_dim, dim) + i;
                        value_from[to] = coded_value(lane, half, dim) + coded_value_load(e, part, part_dim, dim) + i;
                        keys.take(key_from[to]), values.take(value_from[to]);
                    }
            auto read = [&](auto at_of, auto is_right) {
                for (int first = 0; first < 32; first += 16) {
                    int banks = 0;
                    for (int lane = first; lane < first + 16; lane++) {
                        const int g = lane / 4, t = lane % 4, at = at_of(g, t);
                        banks |= 1 << at / 8 % 16;
                        right = right && at % 8 == 0;
                        for (int i = 0; i < 8; i++) right = right && is_right(g, t, i, size_t(at + i));
                    }
                    right = right && banks == 0xffff;
                }
            };
            for (int e = 0; e < part_dim / 8; e++)
                read([&](int g, int t) { return part_key(g, t, e, part_dim); }, [&](int g, int t, int i, size_t at) {
                    return key_from[at] == key_at(true, 32 * half + 4 * g + i / 2, part * part_dim + 2 * (4 * e + t) + i % 2, dim);
                });
            for (int block = 0; block < part_dim / 32; block++)
                for (int j = 0; j < 4; j++)
                    read([&](int g, int t) { return part_value(g, t, j, block); }, [&](int g, int t, int i, size_t at) {
                        return value_from[at] == value_at(true, 32 * half + 8 * t + 2 * j + i % 2, part * part_dim + 32 * block + 4 * g + i / 2, dim);
                    });
        }
    expect(right && keys.all() && values.all(), "codes of few rows" + of(dim, wide));
}

// What a lane of attention_rows.inl takes, by load: 4 keys x 2 channels of K, 4 channels x 2 keys of V.
void check_rows_of_attention() {
    for (int dim = 32; dim <= 256; dim += 32) {
        Places keys(page_keys * dim), values(page_keys * dim);
        bool right = true;
        for (int lane = 0; lane < 32; lane++)
            for (int half = 0; half < 2; half++) {
                const int g = lane / 4, t = lane % 4;
                for (int load = 0; load < dim / 8; load++)
                    for (int e = 0; e < 8; e++) {
                        const int64_t at = lane_key(g, t, half, dim) + 128 * load + e;
                        keys.take(at);
                        right = right && (at - e) % 8 == 0 && at == key_at(true, 32 * half + 4 * g + e / 2, 2 * (4 * load + t) + e % 2, dim);
                    }
                for (int block = 0; block < dim / 32; block++)
                    for (int pair = 0; pair < 4; pair++)
                        for (int e = 0; e < 8; e++) {
                            const int64_t at = lane_value(g, t, half, dim) + 64 * block + 2 * dim * pair + e;
                            values.take(at);
                            right = right && (at - e) % 8 == 0 && at == value_at(true, 32 * half + 8 * t + 2 * pair + e % 2, 32 * block + 4 * g + e / 2, dim);
                        }
            }
        expect(right && keys.all() && values.all(), "lanes' keys and values of few rows" + of(dim));
    }
    check_codes_of_attention<2, true>(), check_codes_of_attention<3, true>(), check_codes_of_attention<8, true>();
    check_codes_of_attention<1, false>(), check_codes_of_attention<4, false>(), check_codes_of_attention<6, false>();
    for (int64_t tiles : {1, 2, 3, 8, 32, 100, 200})
        for (int keys = 1; keys < 300000; keys += 1 + int(below(900))) {
            const int wanted = chunks_wanted(tiles), chunk = chunk_of(keys, wanted), low = int(below(100000));
            expect(chunk % round_keys == 0 && (low + keys - 1) / chunk - low / chunk + 1 <= wanted + 1 && wanted < chunks_most && chunk_at(low, chunk) == low / chunk, "chunks" + of(tiles, keys));
        }
}

// Pages of attention_prompt_page.inl: where a lane finds in shared memory what was copied there, and that the eight lanes which a load
// of 16 bytes serves at once meet in no bank.
void check_tiles_of_prompts() {
    for (int dim : {32, 64, 96, 128, 192, 256}) {
        const int units = int(page_keys) * dim / 8;
        std::vector<int> key_of(size_t(units), -1), value_of(size_t(units), -1);  // place in shared memory -> unit of the page
        Places keys(units), values(units), keys_read(units), values_read(units);
        bool right = true;
        for (int unit = 0; unit < units; unit++) {
            const int thread = unit % prompt_threads, at = prompt_key_swizzle(unit), value_at = prompt_value_swizzle(unit, dim);
            right = right && at == unit - thread + prompt_key_swizzle(thread);
            keys.take(at), values.take(value_at);
            key_of[size_t(at)] = value_of[size_t(value_at)] = unit;
        }
        // The lanes' units lie where unit_of says; of lanes 0..7, 8..15, ... each in banks of its own.
        auto read = [&](Places& places, auto unit_of, auto right_unit) {
            for (int first = 0; first < 32; first += 8) {
                int banks = 0;
                for (int lane = first; lane < first + 8; lane++) {
                    const int at = unit_of(lane / 4, lane % 4);
                    banks |= 1 << at % 8;
                    places.take(at);
                    right = right && right_unit(lane / 4, lane % 4, at);
                }
                right = right && banks == 0xff;
            }
        };
        for (int half = 0; half < 2; half++)
            for (int second = 0; second < 2; second++) {
                for (int step = 0; step < dim / 16; step++)
                    read(keys_read, [&](int g, int t) { return prompt_key_unit(g, t, half, step, second, dim); }, [&](int g, int t, int at) {
                        return key_of[size_t(at)] * 8 == key_at(true, 32 * half + 4 * g, 16 * step + 4 * t + 2 * second, dim);
                    });
                for (int j = 0; j < 2; j++)
                    for (int c = 0; c < dim / 32; c++)
                        read(values_read, [&](int g, int t) { return prompt_value_unit(g, t, half, j, second, c, dim); }, [&](int g, int t, int at) {
                            return value_of[size_t(at)] * 8 == value_at(true, 32 * half + 8 * t + 4 * j + 2 * second, 32 * c + 4 * g, dim);
                        });
            }
        Places widened(units);  // of codes: a thread's own, and eight lanes' in eight banks
        for (int turn = 0; turn < dim / 16; turn++)
            for (int first = 0; first < prompt_threads; first += 8) {
                int key_banks = 0, value_banks = 0;
                for (int thread = first; thread < first + 8; thread++) {
                    const int unit = prompt_widened_unit(thread, turn);
                    widened.take(unit);
                    key_banks |= 1 << prompt_key_swizzle(unit) % 8, value_banks |= 1 << prompt_value_swizzle(unit, dim) % 8;
                    right = right && unit / 2 % prompt_threads == thread;
                }
                right = right && key_banks == 0xff && value_banks == 0xff;
            }
        expect(right && keys.all() && values.all() && keys_read.all() && values_read.all() && widened.all(), "units of pages in shared memory" + of(dim));
    }
}

void check_codes() {
    for (int64_t rows = 1; rows <= 50; rows++)
        for (int64_t k : {1, 64, 65, 256, 257, 600})
            for (bool tiled : {false, true}) {
                QuantizeArgs a{};
                a.k = k, a.codes_stride = round_up(k, tile_depth), a.rows = rows, a.tiled = tiled;
                const int64_t places = last_coded(a, rows), blocks = up(k, block_depth);  // rows that the kernel fills
                expect(places == (tiled ? round_up(rows, code_tile_rows) : rows), "rows of codes" + of(rows));
                Places codes(places * a.codes_stride), scales(places * blocks);
                for (int64_t r = 0; r < places; r++) {
                    for (int64_t i = 0; i < a.codes_stride; i++) codes.take(code_index(a, r, i));
                    for (int64_t b = 0; b < blocks; b++) scales.take(scale_index(a, r, b));
                    for (int64_t i = 0; i < a.codes_stride; i += 16)  // 16 of a row lie together: they are read so
                        expect(code_index(a, r, i + 15) == code_index(a, r, i) + 15 && code_index(a, r, i) % 16 == 0, "16 codes" + of(rows, k));
                }
                expect(codes.all() && scales.all(), "codes and scales" + of(rows, k));
            }
    for (int64_t group : {16, 32}) {
        const WeightFormat f{Packing::int4_k, group, Zero::real, DType::f16};
        Places of_block(panel_outputs * block_depth / group);
        for (int64_t k = 0; k < block_depth; k += group)
            for (int64_t column = 0; column < panel_outputs; column++) {
                of_block.take(k_index(f, k, column));
                for (int64_t i = 1; i < group; i++) expect(k_index(f, k + i, column) == k_index(f, k, column), "a group's scale" + of(group, k));
            }
        expect(of_block.all() && k_scales_at(f) + int64_t(of_block.taken.size()) <= k_minima_at(f) &&
                   k_minima_at(f) + int64_t(of_block.taken.size()) <= header_bytes(f), "scales and minima of a header" + of(group));
    }
}

// ---- draws -------------------------------------------------------------------------------------------------------------

void check_pieces() {
    auto piece_of = [](int64_t rows, int64_t dim) {
        const int64_t piece = split_piece(rows, dim), pieces = up(dim, piece);
        expect(pieces >= 1 && pieces <= most_pieces && (pieces - 1) * piece < dim && pieces * piece >= dim, "pieces" + of(rows, dim));
        expect(piece % split_threads == 0, "a thread's part of a piece" + of(rows, dim));
        return piece;
    };
    for (int64_t rows : {1, 7, 8, 70}) {
        for (int64_t dim = 1; dim < 20000; dim++) piece_of(rows, dim);
        for (int64_t dim = 20000; dim <= most_logits; dim += 1 + below(3000)) piece_of(rows, dim);
        piece_of(rows, most_logits);
    }
    for (int64_t dim : {int64_t(1), int64_t(1023), int64_t(1025), 1 + below(9000), 4096 + below(30000)}) {
        const std::vector<float> x(size_t(dim), 1.0f);
        for (int64_t rows : {1, 8}) {
            const Split split{nullptr, nullptr, 0, 1, piece_of(rows, dim)};
            Places seen(dim);
            gk::launch(up(dim, split.piece), 1, split_threads, 0, [&] {
                Piece piece = first_of_piece(split, x.data(), dim);
                each_of_piece(piece, [&](int i, const Four&, int count) {
                    for (int j = 0; j < count; j++) seen.take(i + j);
                });
            });
            expect(seen.all(), "elements of pieces" + of(rows, dim));
        }
    }
    for (int64_t count : {int64_t(1), rows_at_once - 1, rows_at_once, rows_at_once + 1, 3 * rows_at_once + below(100)})
        for (int64_t stride : {1, 16}) {
            const int64_t first = below(stride);
            std::vector<int> seen(size_t(count * stride), 0);
            split_rows(first, stride, count, 100, [&](Split split, int64_t pieces, int64_t rows) {
                expect(pieces == 1 && rows <= rows_at_once, "rows at once" + of(count));
                for (int64_t y = 0; y < rows; y++) seen[size_t(split.first + y * split.stride)]++;
            });
            for (int64_t r = 0; r < count * stride; r++) expect(seen[size_t(r)] == (r % stride == first), "rows of splits" + of(count, r));
        }
}

void check_orders() {
    float last = -infinity;
    uint32_t last_order = order_of(last);
    for (uint64_t order = last_order + 1; order <= order_of(infinity); order += 1 + uint64_t(below(5000))) {
        const float x = of_order(uint32_t(order));
        if (x == 0.0f && std::signbit(x)) continue;  // both zeros are one
        expect(x > last && order_of(x) == uint32_t(order) && order_of(x) > last_order, "the order of floats" + of(int64_t(order)));
        const int64_t id = below(most_logits);
        expect(order_in(rank_of(x, id)) == order && id_in(rank_of(x, id)) == id && rank_of(x, id) > rank_of(last, 0) && rank_of(x, id) > rank_of(x, id + 1),
               "ranks" + of(int64_t(order)));
        last = x, last_order = uint32_t(order);
    }
    expect(order_of(std::nanf("")) == order_of(-infinity) && order_of(-0.0f) == order_of(0.0f), "NaN and zeros");
    for (float largest : {0.0f, 1e-42f, 17.3f, -17.3f, 3e38f, -3e38f}) {  // bins go down as logits do
        int before = bin_count - 1;
        for (int64_t order = order_of(-infinity); order <= int64_t(order_of(largest)); order += 1 + below(20000)) {
            const int bin = bin_of(of_order(uint32_t(order)), largest);
            expect(bin >= 0 && bin <= before, "bins below" + of(order));
            before = bin;
        }
        expect(bin_of(largest, largest) == 0 && bin_of(std::nanf(""), largest) == bin_count - 1, "the first and the last bin");
    }
}

// ---- experts -----------------------------------------------------------------------------------------------------------

void check_regions() {
    for (int turn = 0; turn < 300; turn++) {
        GroupRowsArgs a{};
        a.experts = 1 + below(turn % 10 ? 12 : experts_most), a.k = 1 + below(a.experts < 8 ? a.experts : 8), a.rows = 1 + below(40);
        const int64_t assignments = a.rows * a.k;
        a.region_count = most_regions(assignments, a.experts), a.places = most_places(assignments, a.experts);
        std::vector<int32_t> ids, tiles(size_t(a.places / region_rows), 77), sources(size_t(a.places), 77), place_of(size_t(assignments), 77);
        std::vector<Region> regions(size_t(a.region_count), {77, 77, 77});
        for (int64_t i = 0; i < assignments; i++) ids.push_back(int32_t((below(3) ? ids.size() : size_t(below(a.experts))) % size_t(a.experts)));
        a.ids = ids.data(), a.regions = regions.data(), a.tiles = tiles.data(), a.sources = sources.data(), a.place_of = place_of.data();
        group_rows(a, 0, 1);
        const std::string what = of(assignments, a.experts);
        std::vector<int32_t> region_at(size_t(a.places), -1);
        int64_t held = 0, end = 0;
        for (int64_t r = 0; r < a.region_count; r++) {
            const Region& region = regions[size_t(r)];
            if (region.expert < 0) {
                expect(region.rows == 0, "a region of no expert has no rows" + what);
                continue;
            }
            expect(region.first == end && region.first % region_rows == 0 && region.rows > 0, "a region begins where the last one ends" + what);
            end = round_up(region.first + region.rows, region_rows);
            expect(end <= a.places, "regions have room" + what);
            for (int64_t at = region.first; at < end && at < a.places; at++) region_at[size_t(at)] = int32_t(r);
            held += region.rows;
        }
        expect(held == assignments, "rows of all regions" + what);
        Places used(a.places);
        for (int64_t i = 0; i < assignments; i++) {
            const int64_t at = place_of[size_t(i)];
            used.take(at);
            if (at < 0 || at >= a.places || region_at[size_t(at)] < 0) {
                expect(false, "a place in no region" + what);
                continue;
            }
            const Region& region = regions[size_t(region_at[size_t(at)])];
            expect(region.expert == ids[size_t(i)] && at < region.first + region.rows && sources[size_t(at)] == i / a.k, "an assignment's place" + what);
            if (i && ids[size_t(i)] == ids[size_t(i - 1)]) expect(at > place_of[size_t(i - 1)], "rows of an expert ascend" + what);
        }
        expect(used.right, "a place for two" + what);
        for (int64_t at = 0; at < a.places; at++) {
            expect(used.taken[size_t(at)] || sources[size_t(at)] == -1, "places of no row" + what);
            expect(tiles[size_t(at / region_rows)] == region_at[size_t(at / region_rows * region_rows)], "the region of 16 places" + what);
        }
    }
}

// ---- fragments ---------------------------------------------------------------------------------------------------------

// PTX ISA, "Matrix Fragments for mma": element i of lane's fragment -> row and column. `each` elements lie in a register;
// of a those of a register share a row, and registers go g, g + 8, then the same further along k.
struct At {
    int row, column;
};
At a_at(int lane, int i, int each) {
    const int g = lane / 4, t = lane % 4, part = i / each;
    return {part % 2 ? g + 8 : g, t * each + i % each + (part >= 2 ? 4 * each : 0)};
}
At b_at(int lane, int i, int each) {
    const int g = lane / 4, t = lane % 4;
    return {t * each + i % each + (i >= each ? 4 * each : 0), g};
}
At d_at(int lane, int i) { return {lane / 4 + (i >= 2 ? 8 : 0), lane % 4 * 2 + i % 2}; }

// Whole numbers in `bits` bits, so that sums are exact: d += a b as the tables say. body(lane, a, b, d) multiplies.
template <class Sum, class Encode, class Body>
void check_product(const char* what, int k, int bits, Encode encode, Body body, int least_a = -127) {
    const int each = 32 / bits, a_count = 16 * k / 32, b_count = 8 * k / 32;
    for (int turn = 0; turn < 20; turn++) {
        std::vector<int> a(size_t(16 * k)), b(size_t(8 * k)), c(16 * 8);
        for (int& x : a) x = int(below(255)) + least_a;
        for (int& x : b) x = int(below(255)) - 127;
        for (int& x : c) x = int(below(2001)) - 1000;
        Places held_a(16 * k), held_b(8 * k), held_d(16 * 8);
        uint32_t fa[32][4] = {}, fb[32][2] = {};
        Sum fd[32][4];
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < a_count; i++) {
                const At at = a_at(lane, i, each);
                held_a.take(at.row * k + at.column);
                fa[lane][i / each] |= encode(a[size_t(at.row * k + at.column)]) << i % each * bits;
            }
            for (int i = 0; i < b_count; i++) {
                const At at = b_at(lane, i, each);
                held_b.take(at.row * 8 + at.column);
                fb[lane][i / each] |= encode(b[size_t(at.row * 8 + at.column)]) << i % each * bits;
            }
            for (int i = 0; i < 4; i++) held_d.take(d_at(lane, i).row * 8 + d_at(lane, i).column), fd[lane][i] = Sum(c[size_t(d_at(lane, i).row * 8 + d_at(lane, i).column)]);
        }
        expect(held_a.all() && held_b.all() && held_d.all(), std::string(what) + ": each element is one lane's");
        gk::launch(1, 1, 32, 0, [&] { body(fa[gk::lane()], fb[gk::lane()], fd[gk::lane()]); });
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                const At at = d_at(lane, i);
                int64_t sum = c[size_t(at.row * 8 + at.column)];
                for (int j = 0; j < k; j++) sum += a[size_t(at.row * k + j)] * b[size_t(j * 8 + at.column)];
                expect(fd[lane][i] == Sum(sum), std::string(what) + ": a product");
            }
    }
}

void check_fragments() {
    auto byte = [](int x) { return uint32_t(uint8_t(x)); };
    check_product<int32_t>("mma_k32", 32, 8, byte, [](uint32_t(&a)[4], uint32_t(&b)[2], int32_t(&d)[4]) { gk::mma_k32(d, a, b); });
    check_product<int32_t>("mma_k32_u8", 32, 8, byte, [](uint32_t(&a)[4], uint32_t(&b)[2], int32_t(&d)[4]) { gk::mma_k32_u8(d, a, b); }, 1);
    check_product<int32_t>("mma_k16", 16, 8, byte, [](uint32_t(&a)[4], uint32_t(&b)[2], int32_t(&d)[4]) { gk::mma_k16(d, a[0], a[1], b[0]); });
    check_product<float>("mma_bf16", 16, 16, [](int x) { return gk::pack_bf16(float(x), 0); },
                         [](uint32_t(&a)[4], uint32_t(&b)[2], float(&d)[4]) { gk::mma_bf16(d, a, b); });
    check_product<float>("mma_f16", 16, 16, [](int x) { return gk::pack_f16(float(x), 0); },
                         [](uint32_t(&a)[4], uint32_t(&b)[2], float(&d)[4]) { gk::mma_f16(d, a, b); });
}

}  // namespace
}  // namespace genkit

int main(int, char** arguments) {
    using namespace genkit;
    rng.seed(uint64_t(atoll(arguments[1])));
    check_pages(), check_tiles_of_prompts(), check_rows_of_attention(), check_codes(), check_pieces(), check_orders(), check_regions(), check_fragments();
    if (wrong) printf("%d are wrong\n", wrong);
    return wrong != 0;
}
