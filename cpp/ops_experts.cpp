// Mixture of experts: see ops.h and experts.h. Which rows an expert has is known at replay only, so the kernels of products
// run inside functions that look it up: over tiles of 16 places, or over (region, piece of its weight).
#include <cstring>

#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t dense_outputs = 48;  // of one unit; a multiple of every tier's tile of outputs
constexpr int64_t piece_products = 1 << 20;

// The part of a kernel's rows that a tile of places holds: rows [from, to) of `region`; none beyond the last region.
struct TilePart {
    Region region;
    int64_t from, to;
};
TilePart part_of(const Region* regions, const int32_t* tiles, int64_t tile) {
    if (tiles[tile] < 0) return {{-1, 0, 0}, 0, 0};
    const Region r = regions[tiles[tile]];
    const int64_t from = tile * region_rows - r.first;
    return {r, from, std::min<int64_t>(from + region_rows, r.rows)};
}

// A kernel over the rows in use, by tiles. In `all` rows are places.
template <class Args>
struct ByTiles {
    void (*kernel)(const Args&, int64_t, int64_t);
    Args all;
    const Region* regions;
    const int32_t* tiles;
    bool code_tiles;  // of the tier
};

void quantize_tiles(const ByTiles<QuantizeArgs>& a, int64_t begin, int64_t end) {
    const int64_t blocks = (a.all.k + block_depth - 1) / block_depth, sums = round_up(a.all.k, tile_depth) / a.all.sum_depth;
    for (int64_t tile = begin; tile < end; tile++) {
        const TilePart part = part_of(a.regions, a.tiles, tile);
        if (part.to == 0) return;
        QuantizeArgs q = a.all;
        const int64_t first = part.region.first;
        q.x += first * q.x_stride;
        q.codes += first * q.codes_stride;
        q.scales += first * blocks;
        q.sums += first * sums;
        q.rows = part.region.rows;
        q.tiled = a.code_tiles && q.rows > untiled_rows;
        a.kernel(q, part.from, part.to);
    }
}

void round_tiles(const ByTiles<RoundRowsArgs>& a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
        const TilePart part = part_of(a.regions, a.tiles, tile);
        if (part.to == 0) return;
        a.kernel(a.all, part.region.first + part.from, part.region.first + part.to);
    }
}

void tile_tiles(const ByTiles<TileRowsArgs>& a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
        const TilePart part = part_of(a.regions, a.tiles, tile);
        if (part.to == 0) return;
        TileRowsArgs t = a.all;
        t.x += part.region.first * t.x_stride;
        t.tiles += part.region.first * round_up(t.k, 32);
        t.rows = part.region.rows;
        a.kernel(t, part.from / region_rows, part.from / region_rows + 1);
    }
}

void gated_tiles(const ByTiles<GatedArgs>& a, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
        const TilePart part = part_of(a.regions, a.tiles, tile);
        if (part.to == 0) return;
        a.kernel(a.all, part.region.first + part.from, part.region.first + part.to);
    }
}

// Products of the regions with their experts' weights. Unit: a piece of a region's weight, `outputs` of the kernel's units
// of `units`, region after region.
template <class Args>
struct ByRegions {
    void (*kernel)(const Args&, int64_t, int64_t);
    Args all;  // weight and bias are the first expert's
    const Region* regions;
    int64_t units, outputs, pieces, weight_bytes;
    bool code_tiles;
};

void move_to(PackedLinearArgs& p, const Region& r, bool code_tiles) {
    p.codes += r.first * p.codes_stride;
    p.scales += r.first * ((p.k + block_depth - 1) / block_depth);
    p.sums += r.first * (round_up(p.k, tile_depth) / sum_depth(p.format));
    p.tiled = code_tiles && r.rows > untiled_rows;
}

void move_to(LinearArgs& p, const Region& r, bool) {
    p.x += r.first * p.x_stride;
    if (p.x_bf16) p.x_bf16 += r.first * round_up(p.k, 32);
}

const void* moved(const void* weight, int64_t bytes) { return static_cast<const char*>(weight) + bytes; }
const uint8_t* moved(const uint8_t* weight, int64_t bytes) { return weight + bytes; }

template <class Args>
void product_of_regions(const ByRegions<Args>& a, int64_t begin, int64_t end) {
    while (begin < end) {
        const Region r = a.regions[begin / a.pieces];
        if (r.rows == 0) return;
        const int64_t first = begin / a.pieces * a.pieces, stop = std::min(end, first + a.pieces);
        Args p = a.all;
        move_to(p, r, a.code_tiles);
        p.weight = moved(p.weight, r.expert * a.weight_bytes);
        if (p.bias) p.bias += r.expert * p.n;
        p.out += r.first * p.out_stride;
        p.rows = r.rows;
        a.kernel(p, (begin - first) * a.outputs, std::min((stop - first) * a.outputs, a.units));
        begin = stop;
    }
}

// Pieces small enough that every thread has several, and no smaller than what pays for fetching them.
int64_t pieces_at_once(int64_t pieces, int64_t products) {
    return std::max<int64_t>(1, std::min(grain_for(piece_products, products), pieces / (8 * get_threads())));
}

template <class Args>
void submit_tiles(void (*run)(const ByTiles<Args>&, int64_t, int64_t), void (*kernel)(const Args&, int64_t, int64_t),
                  const Args& all, const Groups& g) {
    const ByTiles<Args> a{kernel, all, reinterpret_cast<const Region*>(g.regions.data<int32_t>()), g.tiles.data<int32_t>(),
                          kernels().code_tiles};
    submit(run, a, g.tiles.dim(0), 1);
}

template <class Args>
void submit_regions(void (*kernel)(const Args&, int64_t, int64_t), const Args& all, const Groups& g, int64_t units,
                    int64_t outputs, int64_t weight_bytes, int64_t unit_outputs) {
    const int64_t pieces = (units + outputs - 1) / outputs, regions = g.regions.dim(0);
    const ByRegions<Args> a{kernel, all, reinterpret_cast<const Region*>(g.regions.data<int32_t>()), units, outputs, pieces,
                            weight_bytes, kernels().code_tiles};
    const int64_t rows = (g.assignments() + regions - 1) / std::max<int64_t>(1, regions);  // of a region, on average
    submit(product_of_regions<Args>, a, regions * pieces,
           pieces_at_once(regions * pieces, rows * all.k * outputs * unit_outputs));
}

// On a device every region is a product of its own: how many rows it has, and of which expert, is looked up by the kernel.
template <class Args>
void submit_each(void (*kernel)(const Args&, int64_t, int64_t), Args a, const Groups& g, int64_t units) {
    a.region = reinterpret_cast<const Region*>(g.regions.data<int32_t>());
    for (int64_t i = 0; i < g.regions.dim(0); i++, a.region++) submit(kernel, a, units, 1);
}

void linear_regions(const Tensor& x, const Groups& g, const ExpertWeights& w, const float* bias, Tensor& out) {
    LinearArgs a{x.data<float>(), w.weights->bytes(), bias, nullptr, out.data<float>(), 0, w.n, w.k, x.row_stride(), w.n,
                 w.weights->dtype()};
    if (device_in_use() != Device::cpu) {
        a.rows = g.place_of.dim(0);  // at most
        return submit_each(kernels().linear, a, g, w.n);
    }
    OptionalTensor rounded;
    if (a.dtype == DType::bf16 && kernels().row_input != RowInput::f32) {
        rounded = Tensor({x.dim(0), round_up(w.k, 32)}, DType::u16);
        a.x_bf16 = rounded->data<uint16_t>();
        if (kernels().row_input == RowInput::bf16_tiles)
            submit_tiles(tile_tiles, kernels().tile_rows, {a.x, rounded->data<uint16_t>(), 0, w.k, a.x_stride}, g);
        else
            submit_tiles(round_tiles, kernels().round_rows, {a.x, rounded->data<uint16_t>(), w.k, a.x_stride}, g);
    }
    submit_regions(kernels().linear, a, g, w.n, dense_outputs, w.n * w.k * dtype_size(a.dtype), 1);
}

void packed_linear_regions(const char* op, const Tensor& x, const Groups& g, const ExpertWeights& w, const float* bias,
                           const std::string& kind, Tensor& out) {
    const int64_t places = x.dim(0), depth = round_up(w.k, tile_depth), blocks = (w.k + block_depth - 1) / block_depth;
    const int64_t stride = kernels().code_tiles || depth / tile_depth % 2 ? depth : depth + tile_depth;
    Tensor codes({places, stride}, DType::i8), scales({places, blocks}, DType::f32);
    Tensor sums({places, depth / sum_depth(*w.format)}, DType::i16);
    QuantizeArgs q{x.data<float>(), codes.data<int8_t>(), scales.data<float>(), sums.data<int16_t>(), w.k, x.row_stride(), stride, 0,
                   false, sum_depth(*w.format)};
    PackedLinearArgs a{codes.data<int8_t>(), scales.data<float>(), sums.data<int16_t>(), w.weights->data<uint8_t>(), bias,
                             nullptr, out.data<float>(), 0, w.n, w.k, stride, out.dim(1), *w.format, w.gated,
                             w.gated ? activation_from_name(op, kind, true) : Activation::silu, false};
    const int64_t panels = w.weights->dim(1);
    if (device_in_use() != Device::cpu) {
        q.rows = a.rows = g.place_of.dim(0);  // at most
        submit_each(kernels().quantize, q, g, q.rows);
        return submit_each(kernels().packed_linear, a, g, panels);
    }
    submit_tiles(quantize_tiles, kernels().quantize, q, g);
    submit_regions(kernels().packed_linear, a, g, panels, 1, panels * w.weights->dim(2), panel_outputs);
}

}  // namespace

int64_t Groups::assignments() const { return place_of.count(); }

Scoring scoring_from_name(const char* op, const std::string& name) {
    if (name == "softmax") return Scoring::softmax;
    if (name == "softmax_chosen") return Scoring::softmax_chosen;
    if (name == "sigmoid") return Scoring::sigmoid;
    fail(op, "unknown scoring '" + name + "'; known: softmax, softmax_chosen, sigmoid");
}

std::pair<Tensor, Tensor> route(const Tensor& logits, int64_t k, const std::string& scoring, const OptionalTensor& correction,
                                int64_t groups, int64_t groups_kept, bool normalize, float scale) {
    const char* op = "route";
    check_f32(op, "logits", logits, {-1, -1});
    check_contiguous(op, "logits", logits);
    const int64_t rows = logits.dim(0), experts = logits.dim(1);
    if (experts < 1 || experts > experts_most)
        fail(op, "logits " + logits.shape_text() + " of 1 to " + std::to_string(experts_most) + " experts");
    if (groups < 1 || experts % groups != 0 || groups_kept < 1 || groups_kept > groups)
        fail(op, std::to_string(groups_kept) + " of " + std::to_string(groups) + " groups of " + std::to_string(experts) + " experts");
    if (k < 1 || k > experts / groups * groups_kept)
        fail(op, "k is " + std::to_string(k) + "; expected 1 to " + std::to_string(experts / groups * groups_kept));
    check_finite(op, "scale", scale);
    const Scoring way = scoring_from_name(op, scoring);
    if (correction) check_vector(op, "correction", *correction, DType::f32, experts);
    if ((correction || groups > 1) && way != Scoring::sigmoid) fail(op, "groups and a correction go with sigmoid scoring only");
    Tensor ids({rows, k}, DType::i32), weights({rows, k}, DType::f32);
    RouteArgs a{logits.data<float>(), optional_data(correction), ids.data<int32_t>(), weights.data<float>(), experts, k, groups,
                groups_kept, way, normalize, scale};
    submit(kernels().route, a, rows, grain_for(elements_a_piece / 4, experts * k));
    return {ids, weights};
}

Groups group_rows(const Tensor& ids, int64_t experts) {
    const char* op = "group_rows";
    check_dtype(op, "ids", ids, {DType::i32});
    check_shape(op, "ids", ids, {-1, -1});
    check_contiguous(op, "ids", ids);
    if (experts < 1 || experts > experts_most)
        fail(op, "experts is " + std::to_string(experts) + "; expected 1 to " + std::to_string(experts_most));
    if (ids.count() > (int64_t(1) << 30) / region_rows) fail(op, "too many rows at once: ids " + ids.shape_text());
    check_range(op, "ids", ids, experts);
    const int64_t regions = most_regions(ids.count(), experts), places = most_places(ids.count(), experts);
    Groups g{Tensor({regions, 3}, DType::i32), Tensor({places / region_rows}, DType::i32), Tensor({places}, DType::i32),
             Tensor(ids.shape(), DType::i32), experts};
    GroupRowsArgs a{ids.data<int32_t>(), reinterpret_cast<Region*>(g.regions.data<int32_t>()), g.tiles.data<int32_t>(),
                    g.sources.data<int32_t>(), g.place_of.data<int32_t>(), ids.dim(0), ids.dim(1), experts, regions, places};
    submit(kernels().group_rows, a, ids.count() > 0, 1);
    return g;
}

Tensor gather_rows(const Tensor& x, const Groups& groups) {
    const char* op = "gather_rows";
    check_f32(op, "x", x, {groups.place_of.dim(0), -1});
    Tensor out({groups.sources.dim(0), x.dim(1)}, DType::f32);
    GatherRowsArgs a{x.data<float>(), groups.sources.data<int32_t>(), out.data<float>(), x.dim(1), x.row_stride()};
    submit(kernels().gather_rows, a, out.dim(0), grain_for(4 * elements_a_piece, x.dim(1)));
    return out;
}

Tensor combine(const Tensor& y, const Tensor& weights, const std::optional<Groups>& groups, const OptionalTensor& residual) {
    const char* op = "combine";
    check_f32(op, "weights", weights, {-1, -1});
    check_contiguous(op, "weights", weights);
    const int64_t rows = weights.dim(0), k = weights.dim(1);
    check_f32(op, "y", y, {groups ? groups->sources.dim(0) : rows, -1});
    check_contiguous(op, "y", y);
    if (groups) check_shape(op, "groups.place_of", groups->place_of, {rows, k});
    else if (k != 1) fail(op, "weights " + weights.shape_text() + " without groups; expected one a row");
    if (residual) {
        check_f32(op, "residual", *residual, {rows, y.dim(1)});
        check_contiguous(op, "residual", *residual);
    }
    Tensor out({rows, y.dim(1)}, DType::f32);
    CombineArgs a{y.data<float>(), weights.data<float>(), groups ? groups->place_of.data<int32_t>() : nullptr,
                  optional_data(residual), out.data<float>(), y.dim(1), k};
    submit(kernels().combine, a, rows, grain_for(elements_a_piece, k * y.dim(1)));
    return out;
}

ExpertWeights::ExpertWeights(int64_t count) : experts(count) {
    if (count < 1 || count > experts_most)
        fail("experts", "count is " + std::to_string(count) + "; expected 1 to " + std::to_string(experts_most));
    there.resize(size_t(count));
}

// The first one says what all are like.
void ExpertWeights::take(const char* op, int64_t expert, const Tensor& one) {
    if (expert < 0 || expert >= experts) fail(op, "expert " + std::to_string(expert) + " of " + std::to_string(experts));
    if (!weights) {
        std::vector<int64_t> shape = one.shape();
        shape.insert(shape.begin(), experts);
        weights = Tensor(shape, one.dtype());
    }
    std::memcpy(weights->bytes() + expert * one.nbytes(), one.bytes(), size_t(one.nbytes()));
    there[size_t(expert)] = true;
}

void ExpertWeights::set(int64_t expert, const Tensor& one) {
    const char* op = "set";
    check_dtype(op, "weight", one, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "weight", one, {-1, -1});
    check_contiguous(op, "weight", one);
    if (weights && (format || one.dtype() != weights->dtype() || one.dim(0) != n || one.dim(1) != k))
        fail(op, "weight " + one.shape_text() + " of expert " + std::to_string(expert) + " is unlike those before it");
    n = one.dim(0), k = one.dim(1);
    take(op, expert, one);
}

void ExpertWeights::set(int64_t expert, const PackedWeight& one) {
    const char* op = "set";
    auto same = [](const WeightFormat& a, const WeightFormat& b) {
        return a.packing == b.packing && a.group == b.group && a.zero == b.zero && a.scale_dtype == b.scale_dtype;
    };
    if (weights && (!format || !same(*format, one.format) || one.n != n || one.k != k || one.gated != gated))
        fail(op, "packed weight [" + std::to_string(one.n) + ", " + std::to_string(one.k) + "] of expert " +
                 std::to_string(expert) + " is unlike those before it");
    format = one.format, n = one.n, k = one.k, gated = one.gated;
    take(op, expert, one.panels);
}

Tensor expert_linear(const Tensor& x, const Groups& groups, const ExpertWeights& w, const OptionalTensor& bias,
                     const std::string& kind) {
    const char* op = "expert_linear";
    if (std::find(w.there.begin(), w.there.end(), false) != w.there.end()) fail(op, "not every expert's weight has been set");
    if (w.experts != groups.experts)
        fail(op, "weights of " + std::to_string(w.experts) + " experts, groups of " + std::to_string(groups.experts));
    const int64_t places = groups.sources.dim(0);
    check_f32(op, "x", x, {places, w.k});
    if (bias) {
        check_f32(op, "bias", *bias, {w.experts, w.n});
        check_contiguous(op, "bias", *bias);
    }
    if (w.format && w.gated == kind.empty()) fail(op, "a gated weight needs its activation, and no other has one");
    if (!kind.empty() && w.n % 2 != 0) fail(op, "gates and ups: n " + std::to_string(w.n) + " is odd");
    const Activation f = kind.empty() ? Activation::silu : activation_from_name(op, kind, true);
    Tensor out({places, w.gated ? w.n / 2 : w.n}, DType::f32);
    if (places == 0) return kind.empty() || w.gated ? out : Tensor({0, w.n / 2}, DType::f32);
    if (w.format) packed_linear_regions(op, x, groups, w, optional_data(bias), kind, out);
    else linear_regions(x, groups, w, optional_data(bias), out);
    if (w.format || kind.empty()) return out;
    Tensor mixed({places, w.n / 2}, DType::f32);
    if (device_in_use() != Device::cpu) {
        submit_each(kernels().gated, {out.data<float>(), mixed.data<float>(), w.n / 2, w.n, f}, groups, groups.place_of.dim(0));
        return mixed;
    }
    submit_tiles(gated_tiles, kernels().gated, {out.data<float>(), mixed.data<float>(), w.n / 2, w.n, f}, groups);
    return mixed;
}

}  // namespace genkit
